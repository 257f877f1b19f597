"""Inline SVG: round ticks, points where they belong, and text that cannot break the page."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lucidnft.charts import MAX_POINTS, Curve, interval_bar, line_chart, thinned, ticks

finite = st.floats(-1e6, 1e6)


@given(finite, finite, st.booleans())
def test_ticks_span_the_values_and_are_evenly_spaced(a, b, whole):
    low, high = min(a, b), max(a, b)
    found = ticks(low, high, whole=whole)
    tolerance = 1e-6 * max(1.0, abs(low), abs(high))
    assert found[0] <= low + tolerance and found[-1] >= high - tolerance
    assert 2 <= len(found) <= 8
    gaps = {round((q - p) / (found[1] - found[0]), 6) for p, q in zip(found, found[1:], strict=False)}
    assert gaps == {1.0}
    if whole:
        assert all(float(t).is_integer() for t in found)


def test_ticks_are_round_numbers():
    assert ticks(0, 60, whole=True) == [0, 20, 40, 60]
    assert ticks(0.1, 0.93) == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])


@given(st.integers(1, 3000))
def test_long_curves_are_averaged_without_moving_their_mean(count):
    points = [(float(i), float(i % 7)) for i in range(count)]
    kept = thinned(points)
    assert len(kept) <= MAX_POINTS
    if count <= MAX_POINTS:
        assert kept == points
    run = -(-count // MAX_POINTS)
    if count % run == 0:
        assert sum(v for _, v in kept) / len(kept) == pytest.approx(sum(v for _, v in points) / count)


def parsed(figure):
    return ElementTree.fromstring(figure).find("svg")


def test_higher_values_are_drawn_higher_and_later_steps_further_right():
    svg = parsed(line_chart(Curve("r", [(0, 1.0), (10, 3.0), (20, 2.0)], "score")))
    corners = [tuple(map(float, p.split(","))) for p in svg.find("polyline").get("points").split()]
    assert corners[0][0] < corners[1][0] < corners[2][0]
    assert corners[1][1] < corners[2][1] < corners[0][1]
    texts = [t.text for t in svg.iter("text")]
    assert "training step" in texts and "score" in texts


def test_band_and_baseline_are_drawn_inside_the_chart():
    curve = Curve("r", [(0, 1.0), (10, 1.1)], "score", band=[(0, 0.5, 1.5), (10, -4.0, 2.0)], baseline=1.0)
    svg = parsed(line_chart(curve))
    ys = [float(p.split(",")[1]) for p in svg.find("polygon").get("points").split()]
    assert min(ys) >= 0 and max(ys) <= 240
    assert any(line.get("class") == "baseline" for line in svg.iter("line"))


@pytest.mark.parametrize(
    "points", [[(5, 2.0)], [(0, 0.0), (1, 0.0)], [(0, 1e-7), (1, 2e-7)], [(0, 3e8), (9, 4e8)]]
)
def test_flat_single_tiny_and_huge_curves_can_be_drawn(points):
    svg = parsed(line_chart(Curve("r", points, "y")))
    assert len(list(svg.iter("circle"))) == len(points)
    labels = [t.text for t in svg.iter("text") if t.get("text-anchor") == "end"]
    assert len(set(labels)) == len(labels) > 1


def test_names_are_escaped():
    chart = line_chart(Curve("<script>&\"'", [(0, 1.0)], "<b>"))
    assert "<script>" not in chart and "<b>" not in chart
    parsed(chart)


@pytest.mark.parametrize("points", [[], [(0, float("nan"))], [(0, 1.0), (1, float("inf"))]])
def test_nothing_and_non_finite_are_refused(points):
    with pytest.raises(ValueError, match="curve 'r'"):
        line_chart(Curve("r", points, "y"))


def test_the_interval_bar_crosses_zero_when_the_interval_does():
    def ends(difference, low, high):
        bar = re.search(r'class="interval" x1="([\d.]+)" x2="([\d.]+)"', interval_bar(difference, low, high))
        return None if bar is None else tuple(map(float, bar.groups()))

    left, right = ends(0.1, -0.1, 0.3)
    assert left < 60 < right
    left, right = ends(-0.2, -0.3, -0.1)
    assert left < right < 60
    assert ends(0.0, 0.0, 0.0) == (60, 60)
    assert ends(0.5, None, None) is None
