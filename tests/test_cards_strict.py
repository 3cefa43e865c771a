"""What a card may not say, and what the message advises instead."""

import pytest
from test_cards import line_of, refused

from bench import toy
from layerbook import cli, paths
from layerbook.authoring import check, scaffold
from layerbook.claims import cards, discussions, papersources
from layerbook.pages import paper_page
from layerbook.pages.papers import Paper
from layerbook.pipeline import deps, record, substrates


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "{{of: gain, above: 0}}",
            "{{of: gain, above: 1, null: 0}}",
            "for the value of a test that means no effect write null_value",
        ),
        (
            "{{of: gain, above: 0}}",
            '{{of: gain, above: 1, "null": 0}}',
            "the key null is written null_value",
        ),
        ("{{of: gain, above: 0}}", "{{of: gain, above: .nan}}", "no finite number"),
        ("smallest: 0.1", "smallest: .inf", "no finite number"),
        ("smallest: 0.1", "smallest: 1e999", "no finite number"),
        ("smallest: 0.1", 'smallest: "0.1"', "is text where a number is wanted"),
        ("max: 10", "max: -.inf", "no finite number"),
        ("max: 10", "max: -11", "min is larger than max"),
        (
            '    unit: "seed"\n    tests:\n      - {{of',
            '    unit: "  "\n    tests:\n      - {{of',
            "claims.0.unit: is blank",
        ),
        ('paper: "exact"', 'paper: ""', "claims.1.paper: is blank"),
        ('statement: "One is one."', 'statement: "\\n"', "claims.1.statement: is blank"),
        ('statement: "One is one."', "statement: no", 'write "no" for the word'),
        ('statement: "One is one."', "statement: On", 'write "On" for the word'),
        (
            'statement: "One is one."',
            "statement: true",
            "is true or false where text is wanted: put it in quotes",
        ),
        (
            'statement: "One is one."',
            "statement: 11",
            "is a number where text is wanted: put it in quotes",
        ),
        ('statement: "One is one."', "statement: 2024-01-01", "a bare date"),
        ('statement: "One is one."', "statement: null", "is nothing where text is wanted"),
        ('statement: "One is one."', 'statement: "a\\u202eb"', "invisible character U+202E"),
        ('statement: "One is one."', "statement: &a x", "anchors and aliases"),
        ('statement: "One is one."', "statement: !!python/name:os.system x", "the tag"),
        ('paper: "exact"', 'paper: "exact"\n    paper: "other"', "'paper' stands here twice"),
        (
            "cite: test2024",
            "cite: test2025",
            "no entry of book/references.bib (did you mean test2024?)",
        ),
        ('arxiv: "2401.00001"\n', "", "give at least one of arxiv, doi, acl, openreview, url"),
        ('arxiv: "2401.00001"', 'arxiv: "2401.1"', "is not an arXiv id such as"),
        (
            'arxiv: "2401.00001"',
            "arxiv: 2401.00001",
            "is a number where text is wanted: put it in quotes",
        ),
        (
            'arxiv: "2401.00001"',
            'url: "javascript:alert(1)"',
            "an address that starts with https://",
        ),
        (
            "url: null",
            'url: "ftp://x.org"',
            "neither null nor an address that starts with https://",
        ),
        (
            "{{of: gain, above: 0}}",
            "{{of: gain, between: [1, 1]}}",
            "no interval fits between equal bounds",
        ),
        (
            "{{of: gain, above: 0}}",
            "{{of: gain, between: [2, 1]}}",
            "the first bound must not be the larger",
        ),
        ("{{of: gain, above: 0}}", "{{of: gain, count: {{above: 0, at_least: 1.5}}}}", "at_least"),
        ("{{of: gain, above: 0}}", "{{of: gain, count: {{above: 0, at_least: 1}}}}", "at_least"),
        (
            "{{of: gain, above: 0}}",
            "{{of: gain, above: 0, null_value: 1}}",
            "cannot itself lie above",
        ),
        ("{{of: gain, above: 0}}", "{{of: gain}}", "a test has exactly one of above, below"),
        ("{{every: {{above: 0.5}}}}", "{{between: [1, 1]}}", "G1: between"),
        ('title: "A paper for tests"', 'title: "a\\nb"', "write it on one line"),
        ("tier: smoke", "tier: smoke\n    colour: red", "'colour' is no field here"),
        ("tier: smoke", "tier: smoke\n    change: red", "did you mean changed?"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_advice(house, old, new, says):
    message = refused(house, old, new)
    assert says in message and all(part.startswith("toy.yaml:") for part in message.split("\n"))


def test_the_line_is_that_of_the_fault(house):
    assert f"toy.yaml:{line_of('smallest')}:" in refused(house, "smallest: 0.1", "smallest: .nan")
    assert f"toy.yaml:{line_of('cite')}:" in refused(house, "cite: test2024", "cite: none")


@pytest.mark.parametrize(
    "test",
    [
        "{{of: gain, every: {{between: [3, 3]}}}}",
        "{{of: gain, above: 1, null_value: 0}}",
        "{{of: gain, below: 0.7, null_value: 1, on: median}}",
    ],
)
def test_exact_bounds_of_every_unit_and_a_null_value_are_fine(house, test):
    house.paper(card=toy.CARD.replace("{{of: gain, above: 0}}", test))
    assert cards.load("toy")


@pytest.mark.parametrize(
    ("pasted", "field", "value", "address"),
    [
        ("2401.00001", "arxiv", "2401.00001", "https://arxiv.org/abs/2401.00001"),
        (
            "https://arxiv.org/pdf/2401.00001v3.pdf",
            "arxiv",
            "2401.00001",
            "https://arxiv.org/abs/2401.00001",
        ),
        ("arXiv:cs/0101001"[6:], "arxiv", "cs/0101001", "https://arxiv.org/abs/cs/0101001"),
        ("math.ST/0601001", "arxiv", "math.ST/0601001", "https://arxiv.org/abs/math.ST/0601001"),
        ("doi:10.1000/182", "doi", "10.1000/182", "https://doi.org/10.1000/182"),
        (
            "https://doi.org/10.1016/S0010-8650(85)80012<1>",
            "doi",
            "10.1016/S0010-8650(85)80012<1>",
            "https://doi.org/10.1016/S0010-8650(85)80012%3C1%3E",
        ),
        (
            "https://aclanthology.org/2024.acl-long.12/",
            "acl",
            "2024.acl-long.12",
            "https://aclanthology.org/2024.acl-long.12/",
        ),
        ("P19-1001", "acl", "P19-1001", "https://aclanthology.org/P19-1001/"),
        (
            "https://openreview.net/forum?id=AbC-dEf_12",
            "openreview",
            "AbC-dEf_12",
            "https://openreview.net/forum?id=AbC-dEf_12",
        ),
        (
            "https://example.org/a?b=1&c",
            "url",
            "https://example.org/a?b=1&c",
            "https://example.org/a?b=1&c",
        ),
    ],
)
def test_papers_beyond_arxiv_are_scaffolded_read_and_linked(house, pasted, field, value, address):
    scaffold.new("my-paper", pasted)
    card = cards.load("my-paper")
    assert card[field] == value and papersources.links(card) == [
        (papersources.links(card)[0][0], address)
    ]
    page = paper_page._byline(Paper("my-paper", card, {}, {}))
    assert f'href="{address.replace("&", "&amp;")}"' in page


@pytest.mark.parametrize("pasted", ["a paper", "javascript:alert(1)", "240.1", "ftp://x"])
def test_what_names_no_paper_is_refused_before_anything_is_written(house, pasted, capsys):
    assert cli.main(["new", "my-paper", "--paper", pasted]) == 1
    assert (
        "names no paper that can be linked" in capsys.readouterr().err
        and not (paths.NOTEBOOKS / "my-paper.yaml").exists()
    )


def test_an_unknown_substrate_is_named_with_its_line_and_the_likely_one(house):
    house.paper(card=toy.CARD.replace("substrate: []", "substrate: [smollm]"))
    wanted = (
        rf"toy.yaml:{line_of('substrate')}: substrate.0: 'smollm' is neither.*did you mean smollm2"
    )
    with pytest.raises(cards.CardError, match=wanted):
        deps.substrates("toy")
    assert "did you mean smollm2" in "\n".join(check.check("toy"))
    with pytest.raises(cards.CardError, match="did you mean smollm2"):
        record.measured_by("toy")
    assert {"smollm2", "tiny-gpt2"} <= set(substrates.known())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("C1: {reason: a, would_change: b, why: c}", ":1: C1.why: 'why' is no field here"),
        ("C1: {reason: a}", ":1: C1: 'would_change' is missing"),
        ('C1: {reason: " ", would_change: b}', ":1: C1.reason: is blank"),
        (
            "\nC9: {reason: a, would_change: b}",
            ":2: C9 is no claim of notebooks/toy.yaml, which has C1, C2, N1",
        ),
        (
            "C1: {reason: a, would_change: b}\nC1: {reason: a, would_change: b}",
            ":2: 'C1' stands here twice",
        ),
        ("C1: {reason: 3, would_change: b}", ":1: C1.reason: 3 is a number where text is wanted"),
        ("[a]", ':1: ["a"] is a list where a mapping is wanted'),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_discussion_has_its_schema(house, text, says):
    file = house.root / "book" / "discussion" / "toy.yaml"
    file.parent.mkdir()
    file.write_text(text, encoding="utf-8")
    with pytest.raises(discussions.DiscussionError) as caught:
        discussions.read(file, cards.load("toy"))
    assert "discussion/toy.yaml:" in str(caught.value) and says in str(caught.value)
    assert any("discussion/toy.yaml" in fault for fault in check.check("toy"))


def test_a_discussion_without_a_paper_is_named(house):
    folder = house.root / "book" / "discussion"
    folder.mkdir()
    (folder / "tyo.yaml").write_text("", encoding="utf-8")
    assert check.leftovers() == [
        "discussion/tyo.yaml: there is no notebooks/tyo.yaml: rename the discussion, or remove it"
    ]


def test_every_discussion_of_the_book_is_valid():
    for slug in cards.slugs():
        assert (
            discussions.read(paths.BOOK / "discussion" / f"{slug}.yaml", cards.load(slug))
            is not None
        )
    assert check.leftovers() == []
