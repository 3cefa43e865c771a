"""Broken, incomplete and dangerous model files are refused by their names and headers, before
anything is read from them.
"""

import ast
import json
import os
import pickle
import re
from pathlib import Path

import networks
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_capabilities import refusal

from layerbook import paths
from layerbook.data import loaders
from layerbook.models import checkpoint


class Trap:
    """A pickle of this makes a folder when it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def model(tmp_path):
    """A model folder that the papers take."""
    return networks.folder(tmp_path / "model", "llama")


def only_pickle(model, name, mark):
    """Leave a folder with a trap in place of its weights."""
    (model / "model.safetensors").unlink()
    with (model / name).open("wb") as stream:
        pickle.dump(Trap(mark), stream)


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin",
        "model.pt",
        "model.pth",
        "model.ckpt",
        "flax_model.msgpack",
        "tf_model.h5",
        "pytorch_model-00001-of-00002.bin",
        "adapter_model.bin",
    ],
)
def test_a_trap_in_place_of_weights_is_refused_by_its_name_and_never_sprung(model, tmp_path, name):
    only_pickle(model, name, tmp_path / "sprung")
    assert f"its weights are in {name} alone" in refusal("luq", model=str(model))
    with pytest.raises(loaders.InputError):
        loaders.causal_lm(str(model))
    with pytest.raises(loaders.InputError):
        loaders.encoder(str(model))
    assert not (tmp_path / "sprung").exists()
    with (model / name).open(
        "rb"
    ) as stream:  # the trap works: it is not sprung since nothing reads it
        pickle.load(stream)  # noqa: S301
    assert (tmp_path / "sprung").exists()


def test_beside_safetensors_a_pickle_is_not_opened(model, tmp_path):
    with (model / "pytorch_model.bin").open("wb") as stream:
        pickle.dump(Trap(tmp_path / "sprung"), stream)
    assert refusal("luq", model=str(model)) == ""
    network, _ = loaders.causal_lm(str(model))
    assert torch.equal(
        network.lm_head.weight, load_file(model / "model.safetensors")["lm_head.weight"]
    )
    assert not (tmp_path / "sprung").exists()


def test_an_index_may_not_lead_to_a_pickle(model, tmp_path):
    names = load_file(model / "model.safetensors")
    only_pickle(model, "pytorch_model.bin", tmp_path / "sprung")
    for part in ("pytorch_model.bin", "../model.safetensors"):
        (model / checkpoint.INDEX).write_text(
            json.dumps({"weight_map": dict.fromkeys(names, part)}), encoding="utf-8"
        )
        assert "which is no safetensors file of this folder" in refusal("luq", model=str(model))
    assert not (tmp_path / "sprung").exists()


def test_code_of_a_model_is_never_run(model, tmp_path):
    settings = json.loads((model / "config.json").read_text(encoding="utf-8"))
    settings |= {
        "model_type": "strange",
        "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"},
    }
    (model / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    (model / "own.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'sprung')!r})\n", encoding="utf-8"
    )
    assert "luq: model = " in refusal("luq", model=str(model))
    with pytest.raises(loaders.InputError):
        loaders.causal_lm(str(model))
    assert not (tmp_path / "sprung").exists()


def cut(file, share):
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def reheaded(file, change):
    """Write a safetensors file again with a changed header."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: cut(f, 0.5), "bytes where its header asks for"),
        (lambda f: cut(f, 0.001), "cut off or no safetensors file"),
        (lambda f: f.write_bytes(b""), "cut off or no safetensors file"),
        (lambda f: f.write_bytes(f.read_bytes() + b"more"), "bytes where its header asks for"),
        (lambda f: f.write_bytes(b"\xff" * 100), "cut off or no safetensors file"),
        (
            lambda f: f.write_bytes((20).to_bytes(8, "little") + b"x" * 100),
            "the header of model.safetensors is damaged",
        ),
        (
            lambda f: f.write_text(
                "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
                encoding="utf-8",
            ),
            "run 'git lfs pull'",
        ),
        (lambda f: f.unlink(), "it has no weights"),
        (
            lambda f: reheaded(f, lambda h: h["lm_head.weight"].update(shape=[3, 3])),
            "another length than its shape",
        ),
        (
            lambda f: reheaded(f, lambda h: h.update(x=7)),
            "the header of model.safetensors is damaged",
        ),
    ],
)
def test_broken_weights_are_named_with_what_to_do(model, harm, says):
    harm(model / "model.safetensors")
    said = refusal("luq", model=str(model))
    assert says in said and f"luq: model = {str(model)!r}" in said and "\n" not in said


def rewritten(model, change):
    weights = load_file(model / "model.safetensors")
    change(weights)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda w: w.pop("model.layers.5.mlp.up_proj.weight"),
            "1 of its weights are missing from the files, model.layers.5.mlp.up",
        ),
        (lambda w: [w.pop(n) for n in list(w) if ".7." in n], "9 of its weights are missing"),
        (
            lambda w: w.update({"lm_head.weight": w["lm_head.weight"].to(torch.int8)}),
            "lm_head.weight is stored as I8",
        ),
        (
            lambda w: w.update({"lm_head.weight": w["lm_head.weight"].to(torch.float8_e4m3fn)}),
            "lm_head.weight is stored as F8_E4M3",
        ),
    ],
)
def test_missing_or_quantized_weights_are_refused(model, change, says):
    rewritten(model, change)
    assert says in refusal("luq", model=str(model))


def test_parts_are_held_against_their_index(model):
    network = networks.network("llama")
    (model / "model.safetensors").unlink()
    network.save_pretrained(model, max_shard_size="200KB")
    parts = sorted(model.glob("model-*.safetensors"))
    assert len(parts) > 2 and refusal("luq", model=str(model)) == ""
    whole = parts[1].read_bytes()
    parts[1].unlink()
    assert f"1 of its {len(parts)} parts are missing, {parts[1].name} first" in refusal(
        "luq", model=str(model)
    )
    parts[1].write_bytes(whole[:-5])
    assert f"{parts[1].name} has {len(whole) - 5:,} bytes" in refusal("luq", model=str(model))
    parts[1].write_bytes(parts[0].read_bytes())
    assert f"{parts[1].name} lacks " in refusal("luq", model=str(model))
    (model / checkpoint.INDEX).write_text("{", encoding="utf-8")
    assert f"{checkpoint.INDEX} is damaged" in refusal("luq", model=str(model))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "config.json"),
        ("{}", "names no model_type"),
        ("[]", "names no model_type"),
        ('{"model_type": "nothing-known"}', "nothing-known"),
    ],
)
def test_a_damaged_configuration_is_named(model, text, says):
    (model / "config.json").write_text(text, encoding="utf-8")
    said = refusal("luq", model=str(model))
    assert says in said and "\n" not in said


def test_a_model_of_the_hub_is_judged_by_the_list_of_its_files(monkeypatch):
    from types import SimpleNamespace as Listed

    import huggingface_hub

    files = ["config.json", "pytorch_model.bin"]
    api = Listed(model_info=lambda *_a, **_k: Listed(siblings=[Listed(rfilename=f) for f in files]))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setattr(loaders, "check_model", lambda _name: networks.config("llama"))
    assert "its weights are in pytorch_model.bin alone" in refusal("luq", model="someone/something")


def test_a_cached_model_of_the_hub_is_held_against_its_headers(model, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda _repo, name: str(model / name) if (model / name).is_file() else None,
    )
    monkeypatch.setattr(loaders, "check_model", lambda _name: networks.config("llama"))
    assert refusal("luq", model="someone/something") == ""
    cut(model / "model.safetensors", 0.5)
    assert "bytes where its header asks for" in refusal("luq", model="someone/something")


FORBIDDEN = re.compile(r"\b(pickle|joblib|dill|cloudpickle|marshal|shelve)\b")


def unsafe(code):
    """Reads of pickles in a piece of source, and models loaded otherwise than from safetensors of
    the class's own code.
    """
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            found += [n for n in names if FORBIDDEN.search(n)]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called, options = (
                ast.unparse(node.func),
                {k.arg: ast.unparse(k.value) for k in node.keywords},
            )
            found += (
                [called]
                if called
                in ("torch.load", "torch.hub.load", "pd.read_pickle", "pandas.read_pickle")
                else []
            )
            found += [called] if options.get("allow_pickle", "False") != "False" else []
            found += [called] if options.get("trust_remote_code", "False") != "False" else []
            model = (
                called.endswith(".from_pretrained")
                and "Tokenizer" not in called
                and called != "loader.from_pretrained"
            )
            found += [called] if model and options.get("use_safetensors") != "True" else []
    return found


def test_nothing_in_the_tree_reads_a_pickle():
    sources = {p: p.read_text(encoding="utf-8") for p in (paths.ROOT / "src").rglob("*.py")}
    for file in paths.NOTEBOOKS.glob("*.ipynb"):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        sources |= {
            Path(f"{file.name} {c['id']}"): "".join(c["source"])
            for c in cells
            if c["cell_type"] == "code"
        }
    assert len(sources) > 100
    assert {str(p): found for p, code in sources.items() if (found := unsafe(code))} == {}
    for bad in (
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('x')",
        "np.load('x', allow_pickle=True)",
        "AutoModel.from_pretrained('x')",
        "A.from_pretrained('x', use_safetensors=True, trust_remote_code=True)",
    ):
        assert unsafe(bad), bad
