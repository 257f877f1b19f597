"""The tiny run files still give the curves that were reviewed."""

import pytest

from tests.golden.export import FOLDER, RUNS, curves_of


def parsed(text: str) -> dict[tuple[str, str], float]:
    entries = (line.split() for line in text.splitlines())
    return {(step, name): float(value) for step, name, value in entries}


@pytest.mark.parametrize("name", sorted(RUNS))
def test_curves_are_those_on_record(name):
    expected, seen = parsed((FOLDER / f"{name}.txt").read_text()), parsed(curves_of(name))
    assert seen.keys() == expected.keys()
    assert len(seen) > 15
    for key, value in expected.items():
        # processors and torch versions round differently; a change of the method moves far more
        assert seen[key] == pytest.approx(value, rel=2e-3, abs=1e-5), key
