"""Figure of `benchmarks/consistency.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from consistency_report import BOTH, Results, areas_of, shares_of

CURVES = {
    ("degraded", "-"): "SR under one degradation",
    ("restored", "--"): "SR sharp",
    ("across", "-"): "SR sharp",
}


def draw(results: Results, path: Path) -> None:
    """Scores of true and mismatched pairs, spread over degradations, and found swaps against area, seeds together."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(12, 8.5), layout="constrained")
    _pairs(axes[0, 0], results)
    _spread(axes[0, 1], results)
    _curves(axes[1, 0], results, [("degraded", "-"), ("restored", "--")])
    _curves(axes[1, 1], results, [("across", "-")])
    axes[1, 0].set_title("altered images below the unaltered one, same LR image")
    axes[1, 1].set_title("the same, each beside another LR image of the photograph")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _pairs(axis: Any, results: Results) -> None:
    for place, found in enumerate(results.values()):
        for key, marker, shift in (("own", "o", 0.15), ("others", "x", -0.15)):
            values = np.concatenate([seed["real"][key] for seed in found])
            axis.plot(values, np.full(len(values), place + shift), marker, color=f"C{place}", alpha=0.3, ms=4)
    count = len(next(iter(results.values()))[0]["real"]["own"])
    axis.set_yticks(range(len(results)), list(results))
    axis.set(title=f"{count} real pairs: true (o), mismatched (x)", xlabel="score")


def _spread(axis: Any, results: Results) -> None:
    values = [np.mean([seed["invariance"]["spread"] for seed in found], axis=0) for found in results.values()]
    drawn = axis.boxplot(
        values, orientation="horizontal", tick_labels=list(results), patch_artist=True,
        medianprops={"color": "black"},
    )  # fmt: skip
    for place, box in enumerate(drawn["boxes"]):
        box.set_facecolor(f"C{place}")
    axis.set_xscale("log")
    axis.set(
        title=f"spread over ten degradations of a photograph, n = {len(values[0])}",
        xlabel="standard deviation of the score",
    )


def _curves(axis: Any, results: Results, kinds: list[tuple[str, str]]) -> None:
    areas = areas_of(results)
    for place, (name, found) in enumerate(results.items()):
        for where, style in kinds:
            by_seed = np.stack([shares_of(found, where, area, BOTH).mean(axis=1) for area in areas])
            percent = [100 * area for area in areas]
            axis.plot(
                percent, by_seed.mean(axis=1), style, color=f"C{place}", marker="o",
                label=f"{name}: {CURVES[where, style]}",
            )  # fmt: skip
            axis.fill_between(
                percent, by_seed.min(axis=1), by_seed.max(axis=1), color=f"C{place}", alpha=0.15
            )
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.set_xticks([100 * area for area in areas], [f"{area:.0%}" for area in areas])
    axis.axhline(0.8, color="grey", lw=0.8)
    axis.set(xlabel="altered area", ylabel="share (bands: seeds)")
    axis.legend(fontsize=8, handlelength=4)
