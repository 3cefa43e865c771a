"""What is said when a file is damaged: file, fault and the next command, for every kind of file and
of damage.
"""

import errno
import json
import shutil
import subprocess

import pytest

from layerbook import cli, commands, paths
from layerbook.data import manifest
from layerbook.pages import papers
from layerbook.pipeline import advice, driver, filefaults, runner, store

FILES = {  # a file of each kind that the project reads, and what makes it anew
    "dvc.lock": "dvc commit -f",
    "dvc.yaml": "layerbook sync",
    "params.yaml": "layerbook sync",
    "data.dvc": "dvc add data",
    ".dvc/config": "git checkout",
    "notebooks/noprop.yaml": "git checkout",
    "notebooks/noprop.ipynb": "git checkout",
    "book/discussion/noprop.yaml": "git checkout",
    "book/references.bib": "git checkout",
    "book/toc.yml": "git checkout",
    "book/_config.yml": "git checkout",
    "results/bench.json": "make bench",
    "results/cpu/noprop.json": "make rerun PAPER=noprop TIER=cpu",
    "results/cpu/noprop.verdicts.json": "layerbook decide noprop",
    "results/cpu/noprop.ipynb": "make rerun PAPER=noprop TIER=cpu",
    "results/models/resnet20/card.json": "dvc repro -s -f train-resnet20",
    "results/models/resnet20/seed0/model.safetensors": "dvc repro -s -f train-resnet20",
    "results/comparison/quantization.json": "dvc repro -f compare-quantization",
    "results/comparison/scores.json": "dvc repro -f collect-layer-scores",
}
CONFLICT = "<<<<<<< HEAD\n{0}\n=======\n{0}\n>>>>>>> theirs\n"
DAMAGE = {  # how it is done, and what is said of it
    "empty": (lambda f: f.write_bytes(b""), "is empty"),
    "truncated": (lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 3]), ""),
    "conflict": (
        lambda f: f.write_text(CONFLICT.format(f.read_text(encoding="latin-1")), encoding="utf-8"),
        "conflict markers",
    ),
    "list": (lambda f: f.write_text("[1, 2]\n", encoding="utf-8"), ""),
    "number": (lambda f: f.write_text("7\n", encoding="utf-8"), ""),
    "not text": (lambda f: f.write_bytes(b"\xff" + f.read_bytes()[1:]), ""),
    "missing": (lambda f: f.unlink(), "is missing"),
    "folder": (lambda f: (f.unlink(), f.mkdir()), "is a folder where a file belongs"),
}
FORGIVEN = {("book/discussion/noprop.yaml", "empty")}  # a discussion without entries


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """A committed folder with one real file of each kind."""
    folder = tmp_path_factory.mktemp("committed")
    for name in FILES:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(paths.ROOT / name, target)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "all")
    return folder


@pytest.fixture
def tree(committed, tmp_path, monkeypatch):
    """A copy of that folder, in the checkout's place."""
    shutil.copytree(committed, tmp_path, dirs_exist_ok=True)
    (tmp_path / "src").symlink_to(paths.ROOT / "src")
    for name, folder in {
        "ROOT": "",
        "NOTEBOOKS": "notebooks",
        "RESULTS": "results",
        "MODELS": "results/models",
        "PREPARED": "build/prepared",
        "BOOK": "book",
        "DATA": "data",
    }.items():
        monkeypatch.setattr(paths, name, tmp_path / folder)
    return tmp_path


def git(folder, *arguments):
    return subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, encoding="utf-8"
    ).stdout


def test_good_files_are_not_complained_of(tree):
    assert advice.survey(tree) == []


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_every_damage_to_every_kind_of_file_is_named_with_what_to_type(tree, name, damage):
    do, said = DAMAGE[damage]
    do(tree / name)
    found = advice.survey(tree, only=[name])
    # a third may be valid YAML
    cut = damage == "truncated" and not name.endswith((".json", ".ipynb", ".safetensors"))
    if (name, damage) in FORGIVEN or (cut and not found):
        return
    first = "\n".join(found)
    if name == "dvc.lock" or not name.endswith(".safetensors"):
        assert said in first, first
    assert first.startswith(name) and FILES[name] in first and f"git checkout -- {name}" in first, (
        first
    )
    assert "Traceback" not in first and "another" not in first
    if name.endswith(("noprop.json", "noprop.ipynb")) and name.startswith("results"):
        assert "about " in first and " s)" in first  # how long the run takes


def test_a_committed_damage_is_not_answered_with_git(tree):
    (tree / "dvc.lock").write_text("", encoding="utf-8")
    git(tree, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qam", "damaged")
    told = advice.survey(tree, only=["dvc.lock"])
    assert told == [
        "dvc.lock is empty\n  record the files as they are: rm -rf dvc.lock && dvc commit -f"
    ]


def test_a_staged_damage_is_brought_back_from_the_commit(tree):
    (tree / "dvc.lock").write_text("", encoding="utf-8")
    git(tree, "add", "dvc.lock")
    assert "git checkout HEAD -- dvc.lock" in advice.survey(tree, only=["dvc.lock"])[0]


FIELDS = [
    (
        "results/cpu/noprop.json",
        ("notebook", "sha256"),
        "is no file of measurements: notebook: 'sha256' is a required property",
    ),
    (
        "results/cpu/noprop.json",
        ("seconds",),
        "is no file of measurements: it: 'seconds' is a required property",
    ),
    (
        "results/cpu/noprop.verdicts.json",
        ("claims", 0, "verdict"),
        "is no file of verdicts: claims.0: 'verdict' is a required property",
    ),
    ("results/models/resnet20/card.json", ("description",), "lacks the field 'description'"),
    ("results/cpu/noprop.ipynb", ("cells", 0, "source"), "lacks the field 'source' in cell 1"),
]


@pytest.mark.parametrize(("name", "where", "said"), FIELDS)
def test_a_field_that_is_gone_is_named(tree, name, where, said):
    content = json.loads((tree / name).read_text(encoding="utf-8"))
    holder = content
    for key in where[:-1]:
        holder = holder[key]
    del holder[where[-1]]
    (tree / name).write_text(json.dumps(content), encoding="utf-8")
    assert advice.survey(tree, only=[name])[0].startswith(f"{name} {said}\n")


# prose that is cut short is YAML still
RECORD, PROSE = (
    "results/cpu/noprop.json",
    "book/discussion/noprop.yaml",
)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (RECORD, "truncated"),
        *(
            (name, damage)
            for name in (RECORD, PROSE)
            for damage in ("empty", "list", "number", "folder", "conflict")
        ),
    ],
)
def test_pages_refuse_damaged_records_and_discussions_in_one_message(tree, name, damage):
    DAMAGE[damage][0](tree / name)
    if (name, damage) in FORGIVEN:
        assert papers.load(tree)[0].discussion == {}
        return
    with pytest.raises(papers.BookError, match=name):
        papers.load(tree)


@pytest.mark.parametrize(
    ("prose", "said"),
    [
        ("C1: just words\n", "holds a single value where a mapping is wanted under 'C1'"),
        ("C1: {would_change: more}\n", "lacks the field 'reason' under 'C1'"),
        ("C1: {reason: 3}\n", "has a field 'reason' of the wrong type (int) under 'C1'"),
    ],
)
def test_a_discussion_without_its_fields_is_named(tree, prose, said):
    (tree / "book/discussion/noprop.yaml").write_text(prose, encoding="utf-8")
    with pytest.raises(papers.BookError) as caught:
        papers.load(tree)
    assert said in str(caught.value) and "git checkout -- book/discussion/noprop.yaml" in str(
        caught.value
    )


@pytest.mark.parametrize("damage", ["empty", "list", "folder", "conflict"])
@pytest.mark.parametrize("name", ["dvc.lock", "dvc.yaml", "params.yaml", "data.dvc", ".dvc/config"])
def test_layerbook_data_stops_before_dvc_stumbles(tree, name, damage, capsys, monkeypatch):
    monkeypatch.setattr(store.fetch, "fetch", lambda: pytest.fail("went on"))
    DAMAGE[damage][0](tree / name)
    assert cli.main(["data"]) == 1
    assert f"git checkout -- {name}" in capsys.readouterr().out


def test_status_says_which_record_is_damaged(tree, capsys):
    (tree / "results/cpu/noprop.json").write_text(
        '{"schema": 1, "paper": "noprop"}', encoding="utf-8"
    )
    assert cli.main(["status"]) == 1
    told = capsys.readouterr().err
    assert (
        "results/cpu/noprop.json is no file of measurements" in told
        and "git checkout -- results/cpu/noprop.json" in told
    )


def test_a_fault_of_the_program_is_not_taken_for_a_damaged_file(tree, monkeypatch, capsys):
    monkeypatch.setattr(commands, "status", lambda _: {}["nothing"])
    assert cli.main(["status"]) == 70
    told = capsys.readouterr().err
    assert "unexpected KeyError" in told and "LAYERBOOK_DEBUG=1" in told


def test_only_a_lock_that_is_held_means_another_process(tree):
    held = advice.of_dvc(
        "status", "ERROR: Unable to acquire lock. Most likely another DVC process is running", tree
    )
    assert "another DVC process is at work" in held
    blocked = advice.of_dvc(
        "repro", "'x' is busy, it is being blocked by:\n (PID 4): dvc repro", tree
    )
    assert "another DVC process is at work" in blocked
    torn = advice.of_dvc(
        "status",
        "ERROR: Unable to read RWLock-file '.dvc/tmp/rwlock'. JSON structure is corrupted",
        tree,
    )
    assert "rm .dvc/tmp/rwlock" in torn and "another" not in torn
    (tree / "dvc.lock").write_text("", encoding="utf-8")
    empty = advice.of_dvc("status", "'./dvc.lock' validation failed.", tree)
    assert (
        empty.startswith("dvc.lock is empty")
        and "another" not in empty
        and "git checkout -- dvc.lock" in empty
    )


def lock(tree, code="a"):
    """Record the network of the tree in dvc.lock as made from one file of code."""
    (tree / "code.py").write_text("a", encoding="utf-8")
    md5 = "0cc175b9c0f1b6a831c399e269772661"  # of "a"
    folder = tree / "results/models/resnet20"
    stage = {
        "cmd": "x",
        "deps": [{"path": "code.py", "md5": md5}],
        "outs": [{"path": "results/models/resnet20", "md5": manifest.directory_md5(folder)}],
    }
    (tree / "dvc.lock").write_text(
        json.dumps({"schema": "2.0", "stages": {"train-resnet20": stage}}), encoding="utf-8"
    )
    (tree / "code.py").write_text(code, encoding="utf-8")


def test_a_changed_network_stops_before_it_is_trained_anew(tree, capsys):
    lock(tree)
    assert store.changed_networks() == []
    file = tree / "results/models/resnet20/seed0/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert cli.main(["data"]) == 1
    told = capsys.readouterr().out
    assert "git checkout -- results/models/resnet20" in told
    assert (
        "its card says, in seconds: about 200 on two cores" in told
        and "dvc repro -s -f train-resnet20" in told
    )


def test_a_network_that_git_can_bring_back_is_not_trained_for_being_deleted(tree):
    lock(tree)
    shutil.rmtree(tree / "results/models/resnet20")
    assert store.changed_networks() == ["resnet20"]


def test_a_change_of_its_code_asks_for_training(tree):
    lock(tree, code="b")
    (tree / "results/models/resnet20/card.json").write_text("{}", encoding="utf-8")
    assert store.changed_networks() == []


def test_run_stops_when_dvc_would_train_for_the_outputs_alone(tree, monkeypatch):
    (tree / "results/models/resnet20/card.json").write_text('{"seconds": 7}', encoding="utf-8")
    why = [{"changed outs": {"results/models/resnet20": "modified"}}]
    asked = []

    def dvc(*arguments):
        asked.append(arguments)
        return json.dumps({"train-resnet20": why})

    monkeypatch.setattr(driver, "dvc", dvc)
    monkeypatch.setattr(driver, "stages", lambda: {"train-resnet20": {}})
    with pytest.raises(
        runner.RunError, match=r"git checkout -- results/models/resnet20(.|\n)*nothing was run"
    ):
        driver.differing()
    assert asked == [driver.STATUS]
    why.insert(0, {"changed deps": {"src/layerbook/networks/resnet20.py": "modified"}})
    driver.differing()
    assert asked[-2][:3] == ("repro", "-q", "train-resnet20")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "chmod u+rw data/x"),
        (errno.ENOSPC, "the disk is full"),
        (errno.EISDIR, "mv data/x data/x.folder"),
        (errno.ENOTDIR, "mv data/x data/x.file"),
        (errno.ENOENT, "layerbook data"),
    ],
)
def test_what_the_system_refuses_is_told_with_the_next_command(tree, number, said):
    told = advice.explain(OSError(number, "no", str(tree / "data/x")), tree)
    assert told.startswith("data/x") and said in told


def test_a_damaged_prepared_card_is_prepared_again(tree):
    folder = tree / "build/prepared/minilm"
    folder.mkdir(parents=True)
    for content in ("", "[]", "{", "{}"):
        (folder / "card.json").write_text(content, encoding="utf-8")
        assert store.stale("minilm")


def test_a_missing_file_is_told_from_an_unreadable_one(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    assert filefaults.fault_of(tmp_path / "x", filefaults.text_of) == "is missing"
    (tmp_path / "x").write_text("x", encoding="utf-8")
    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    assert (
        filefaults.fault_of(tmp_path / "x", filefaults.text_of)
        == "cannot be read (Permission denied)"
    )
