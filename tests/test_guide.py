"""Every card, discussion and command that the book's guide shows is one that works."""

import re
import shlex
import subprocess
import sys

import jsonschema
import pytest

from bench import toy
from layerbook import cli, paths, yamlfile
from layerbook.claims import cards, discussions, lint, papersources, testwords
from layerbook.pipeline import cluster

PAGES = [
    paths.ROOT / "CONTRIBUTING.md",
    paths.ROOT / "README.md",
    *sorted((paths.ROOT / "book" / "guide").glob("*.md")),
]
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", flags=re.M | re.S)
PROGRAMS = {"layerbook", "make", "papermill", "dvc", "git", "pip", "python"}
# A command as recipes run it and as messages name it: after a quote, a colon or a verb.
SPOKEN = re.compile(
    r"(?:[`'\"(@]|&& |[:;] |\brun |-m |^\s*)layerbook (?!and\b)([a-z][a-z-]*)", flags=re.M
)
RECIPES = [paths.ROOT / name for name in ("Makefile", "tests/run.sh", "dvc.yaml")]
SOURCES = sorted(
    file
    for file in (paths.ROOT / "src" / "layerbook").rglob("*")
    if file.suffix in {".py", ".yaml", ".html", ".md", ".ipynb"}
)
TARGETS = set(
    re.findall(r"^([a-z-]+):", (paths.ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
)


def examples(language):
    """(file:line, text) of each fenced example in one language."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in FENCE.finditer(text):
            if found[2] == language:
                body = "\n".join(line.removeprefix(found[1]) for line in found[3].splitlines())
                yield pytest.param(
                    body, id=f"{page.name}:{text.count(chr(10), 0, found.start()) + 1}"
                )


def commands():
    """Every command of the fenced examples, and those of our own that stand in the prose."""
    for param in examples("bash"):
        for line in param.values[0].splitlines():
            for part in line.split("#")[0].split("&&"):
                if part.strip():
                    yield pytest.param(part.strip(), id=f"{param.id} {part.strip()}")
    for page in PAGES:
        for found in re.findall(r"`((?:layerbook|make) [^`]+)`", page.read_text(encoding="utf-8")):
            yield pytest.param(found, id=f"{page.name} {found}")


@pytest.mark.parametrize("text", list(examples("yaml")))
def test_examples_of_files_are_valid(text, tmp_path, monkeypatch):
    data = yamlfile.Document("example", text).data
    if set(data) == {"slurm"}:
        monkeypatch.setattr(paths, "ROOT", tmp_path)
        (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
        assert cluster.settings() is not None
    elif "claims" in data:
        (tmp_path / "notebooks").mkdir()
        (tmp_path / "book").mkdir()
        (tmp_path / "book" / "references.bib").write_text("@misc{test2024,\n}\n", encoding="utf-8")
        head = toy.CARD.split("gates:")[0].format(slug="toy")
        (tmp_path / "notebooks" / "toy.yaml").write_text(head + text, encoding="utf-8")
        card = cards.read(tmp_path / "notebooks" / "toy.yaml")
        assert [c["kind"] for c in card["claims"]] == ["effect", "control", "control"]
        assert lint.faults(card) == []
    elif "parameters" in data:  # a part of a card
        rules = cards.schema()
        fields = rules["properties"]["parameters"] | {"$defs": rules["$defs"]}
        assert list(jsonschema.Draft202012Validator(fields).iter_errors(data["parameters"])) == []
    else:  # a discussion
        file = tmp_path / "discussion.yaml"
        file.write_text(text, encoding="utf-8")
        assert discussions.read(file, {"claims": [{"id": "C1"}]}) == data


def test_every_form_of_test_in_the_guide_is_one_that_cards_take():
    table = (paths.ROOT / "book/guide/claims.md").read_text(encoding="utf-8")
    forms = [
        form
        for row in re.findall(r"^\| (`.*?`) \|", table, flags=re.M)
        for form in re.findall(r"`([^`]+)`", row)
    ]
    seen = set()
    for form in forms:
        text = re.sub(r"(?<=[ \[])[xabcd](?=[],} ]|$)", "3.0", form).replace(
            "at_least: s", "at_least: 0.5"
        )
        test = yamlfile.Document("form", f"{{{text}}}").data
        rules = {"$ref": "#/$defs/test", "$defs": cards.schema()["$defs"]}
        assert not list(cards.faults_of(test, rules)), form
        assert testwords.describe(test)
        seen |= set(test) - {"of"}
    assert seen == {"above", "below", "between", "within", "every", "count", "matches", "rank"}


@pytest.mark.parametrize("command", list(commands()))
def test_commands_exist(command):
    words = [
        re.sub(r"^<.*>$", "relp", word)
        for word in shlex.split(re.sub(r"<[^>]*>", "relp", command))
        if word != "."
    ]
    program, rest = words[0], words[1:]
    if program.endswith("activate"):
        return
    assert program in PROGRAMS
    if program == "layerbook":
        args = cli.parser().parse_args(rest)  # which exits for what it does not know
        if getattr(args, "paper", None) and args.paper != "relp":
            papersources.recognise(args.paper)
    elif program == "make":
        assert {word for word in rest if "=" not in word} <= TARGETS
    elif program == "papermill":
        assert (paths.ROOT / rest[0]).is_file()
        slug = rest[0].removeprefix("notebooks/").removesuffix(".ipynb")
        known = {*cards.COMMON_PARAMETERS, *cards.load(slug)["parameters"]}
        assert {rest[k + 1] for k, word in enumerate(rest) if word == "-p"} <= known


def subcommands():
    """The commands of `layerbook`, by name."""
    (found,) = [action for action in cli.parser()._actions if action.dest == "command"]
    return found.choices


def test_recipes_and_messages_name_commands_that_exist():
    known, named, wrong = set(subcommands()), set(), []
    for file in [*PAGES, *RECIPES, *SOURCES]:
        for word in SPOKEN.findall(file.read_text(encoding="utf-8")):
            named.add(word)
            if word not in known:
                wrong.append(f"{file.relative_to(paths.ROOT)}: layerbook {word}")
    assert wrong == []
    assert named == known, "a command that no page, recipe or message names"


def test_no_module_is_run_by_its_own_name():
    """`layerbook` is the one command line: modules have no mains, and nothing asks for one."""
    main = '__name__ == "__main__"'
    dotted = re.compile(r"-m layerbook\.\w+|layerbook(\.\w+)+ fetch")
    for file in [*PAGES, *RECIPES, *SOURCES]:
        text = file.read_text(encoding="utf-8")
        assert not dotted.search(text), file
        assert main not in text or file.name == "__main__.py", file


@pytest.mark.parametrize("name", list(subcommands()))
def test_each_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    said = capsys.readouterr()
    assert ended.value.code == 0 and said.out.startswith(f"usage: layerbook {name} ")
    description = subcommands()[name].description
    assert len(description) > 20 and " ".join(said.out.split()).count(description) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["fresh"], ["status"]])
def test_these_answer_without_waiting_for_torch(house, arguments):
    code = (
        "import atexit, sys; from layerbook import cli\n"
        "atexit.register(lambda: print('torch:', 'torch' in sys.modules))\n"
        f"cli.main({arguments!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False
    )
    assert done.stdout.splitlines()[-1] == "torch: False" and "Traceback" not in done.stderr
