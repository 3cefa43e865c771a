"""A model that a method is to run on, as far as it can be known without its weights."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerbook.data import loaders
from layerbook.layers import transformer as tf
from layerbook.models import checkpoint, twins


class Unfit(ValueError):
    """A model that a method cannot take; the message says what it lacks."""


class Unknown(Unfit):
    """A model of a class or layout that is not known here."""


class Model:
    """A model as far as it can be known without its weights; each part is made when asked for."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind, self.where = name, kind, loaders.find_model(name)

    @property
    def folder(self) -> Path | None:
        """Its folder on this machine, or None for one that is still to be downloaded."""
        if Path(self.where).is_dir():
            return Path(self.where)
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            names = ("config.json", checkpoint.SINGLE, checkpoint.INDEX)
            config, *weights = [try_to_load_from_cache(self.where, n) for n in names]
        except HFValidationError:
            return None
        have = isinstance(config, str) and any(isinstance(w, str) for w in weights)
        return Path(config).parent if have else None

    @cached_property
    def config(self) -> Any:
        """Its configuration. Raises inputs.InputError for a name that leads nowhere."""
        return loaders.check_model(self.name)

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer. Raises Unfit if it has none, or none that can be read."""
        import transformers

        if self.folder and not any((self.folder / n).is_file() for n in checkpoint.TOKENIZERS):
            raise Unfit(
                "it has no tokenizer (tokenizer.json or another of "
                f"{', '.join(checkpoint.TOKENIZERS[1:4])}): copy the tokenizer's files there"
            )
        try:
            where, here = str(self.folder or self.where), self.folder is not None
            return transformers.AutoTokenizer.from_pretrained(where, local_files_only=here)
        except Exception as error:  # libraries raise whatever they please for files of another kind
            reason = str(error).strip().split("\n")[0][:200]
            raise Unfit(f"its tokenizer cannot be read ({reason}): copy its files anew") from None

    @cached_property
    def twin(self) -> Any:
        """A tiny network of its class. Raises Unknown for a class that the loader does not know."""
        import transformers

        auto = {"causal-lm": "AutoModelForCausalLM", "encoder": "AutoModel"}[self.kind]
        try:
            return twins.build(self.config, getattr(transformers, auto))
        except (ValueError, AttributeError) as error:
            reason = str(error).split(" for this kind of AutoModel")[0][:160]
            raise Unknown(
                f"a network of type {self.config.model_type!r} cannot be made by {auto} ({reason})"
            ) from None

    @cached_property
    def stack(self) -> tf.Stack:
        """The twin's blocks. Raises Unknown for a layout that is not known."""
        try:
            return tf.Stack(self.twin)
        except ValueError:
            known = ", ".join(layout.models for layout in tf.LAYOUTS)
            raise Unknown(
                f"the blocks of a network of type {self.config.model_type!r} do not add up to "
                f"a residual stream in a layout that is known here ({known})"
            ) from None

    def outputs_of(self, module: nn.Module, keep: Callable[[Tensor, Tensor], Any]) -> Any:
        """What `keep` makes of input and output of a module of the twin in one forward pass."""
        found: list[Any] = []
        hook = module.register_forward_hook(
            lambda _m, args, out: found.append(
                keep(args[0], out[0] if isinstance(out, tuple) else out)
            )
        )
        try:
            with torch.no_grad():
                self.twin(input_ids=twins.sample())
        finally:
            hook.remove()
        return found[0] if found else None

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Format and shape of its stored tensors, from the headers of its files.

        Raises Unfit for files that are missing, damaged, in another format or quantized.
        """
        try:
            if self.folder:
                checkpoint.config(self.folder)
                found = checkpoint.tensors(self.folder)
            else:
                found = self._remote()
            checkpoint.usable(found)
        except checkpoint.CheckpointError as error:
            raise Unfit(str(error)) from None
        if getattr(self.config, "quantization_config", None):
            raise Unfit(
                "its weights are stored quantized, which no method here computes with; take "
                "the version of the model that is not"
            )
        return found

    def _remote(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Formats and shapes from the hub, which sends headers alone."""
        from huggingface_hub import HfApi

        self.config  # noqa: B018 - says in one sentence that there is no such model or no connection
        api = HfApi()
        listed = [f.rfilename for f in api.model_info(self.where, timeout=10).siblings or []]
        checkpoint.wanted_files(listed)
        files = api.get_safetensors_metadata(self.where).files_metadata.values()
        return {n: (t.dtype, tuple(t.shape)) for f in files for n, t in f.tensors.items()}

    def whole(self, stored: Collection[str]) -> None:
        """Raises Unfit if weights of the network are missing from the names of stored tensors."""
        prefix = self.twin.base_model_prefix
        try:
            checkpoint.complete(
                stored, self._all_layers([n for n, _p in self.twin.named_parameters()]), prefix
            )
        except checkpoint.CheckpointError as error:
            try:  # some classes store their weights under other names than they use
                checkpoint.complete(stored, self._all_layers(self._saved()), prefix)
            except checkpoint.CheckpointError:
                raise Unfit(str(error)) from None

    def _saved(self) -> list[str]:
        """Names under which the twin's weights are stored."""
        with tempfile.TemporaryDirectory() as folder:
            self.twin.save_pretrained(folder)
            return sorted(checkpoint.tensors(Path(folder)))

    def _all_layers(self, names: list[str]) -> list[str]:
        """Names of the model's weights, from those of the twin's; [] for a class whose layers are
        not all alike.
        """
        layers = re.compile(r"(\.|^)(layers|h|layer|blocks)\.(\d+)\.")
        names = [n for n in names if "pooler" not in n]  # which no method uses
        first, second = ([n for n in names if (m := layers.search(n)) and m[3] == i] for i in "01")
        if sorted(layers.sub(r"\1\2.1.", n) for n in first) != sorted(second):
            return []
        others = [n for n in names if not layers.search(n)]
        return others + [
            layers.sub(rf"\g<1>\g<2>.{i}.", n)
            for i in range(self.config.num_hidden_layers)
            for n in first
        ]
