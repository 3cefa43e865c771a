"""A record, or its verdicts, cut at any byte: never an unhandled exception, and never fresh."""

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from layerbook import cli
from layerbook.pipeline import driver, record, runner

FIRST: dict[str, bytes] = {}


@pytest.fixture
def ran(house):
    """The house after one good run of its paper."""
    if not FIRST:
        runner.run("toy")
        FIRST.update(house.results())
    for name, content in FIRST.items():
        record.replace(house.root / "results" / name, content)
    return house


@pytest.mark.parametrize("suffix", [".json", ".verdicts.json", ".ipynb"])
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(share=st.floats(0, 1, exclude_max=True))
@example(share=1.0)  # the newline at the end, and nothing else
@example(share=0.0)
def test_a_file_cut_at_any_byte_is_never_fresh_and_never_an_exception(ran, suffix, share):
    file, whole = ran.root / f"results/cpu/toy{suffix}", FIRST[f"cpu/toy{suffix}"]
    assert record.problems("toy", "cpu") == []
    file.write_bytes(whole[: min(int(share * len(whole)), len(whole) - 1)])
    try:
        assert record.problems("toy", "cpu") != []
        assert cli.main(["fresh", "toy"]) == 1
        assert isinstance(driver.plan([], "cpu"), list)
    finally:
        file.write_bytes(whole)
