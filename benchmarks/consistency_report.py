"""Tables and figure of `benchmarks/consistency.py`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rewards import interval

Results = dict[str, dict[str, Any]]
WHERE = ("degraded", "restored")
BOTH = ("foreign", "texture")


def shown(values: Iterable[float], key: str) -> str:
    """Mean and its 95 % bootstrap interval."""
    mean, low, high = interval(np.asarray(list(values), dtype=np.float64), key)
    return f"{mean:.4g} [{low:.4g}, {high:.4g}]"


def found_shares(
    rows: list[dict[str, Any]], where: str, area: float, fillings: tuple[str, ...]
) -> np.ndarray:
    """Per photograph: share of its swaps of this area that score below the unaltered image."""
    chosen = [r for r in rows if r["where"] == where and r["area"] == area and r["filling"] in fillings]
    by_photograph: dict[int, list[bool]] = {}
    for row in chosen:
        by_photograph.setdefault(row["photograph"], []).append(row["drop"] > 0)
    return np.array([np.mean(found) for found in by_photograph.values()])


def tables(results: Results) -> str:
    """Markdown, and a line per comparison of neighbours."""
    parts = (matching_table, invariance_table, hallucination_table, control_table, trap_table)
    return "\n\n".join("\n".join(part(results)) for part in parts)


def matching_table(results: Results) -> Iterator[str]:
    """Mean score of true and of mismatched pairs, and how well it tells them apart."""
    yield "| reward | pairs | true | mismatched | AUC |\n| --- | --- | --- | --- | ---: |"
    for name, found in results.items():
        for pairs in ("real", "synthetic"):
            own, others, auc = (found[pairs][key] for key in ("own", "others", "auc"))
            yield f"| {name} | {pairs} | {shown(own, name)} | {np.mean(others):.4f} | {auc:.4f} |"


def invariance_table(results: Results) -> Iterator[str]:
    """Spread of the score over degradations of one image, absolute and in units of what matching is worth."""
    yield "| reward | spread in a pool | of the gap true - mismatched | rank correlation with strength |"
    yield "| --- | --- | ---: | --- |"
    for name, found in results.items():
        gap = np.mean(found["synthetic"]["own"]) - np.mean(found["synthetic"]["others"])
        spread, correlation = found["invariance"]["spread"], found["invariance"]["correlation"]
        share = np.mean(spread) / gap
        yield f"| {name} | {shown(spread, name)} | {share:.2%} | {shown(correlation, name)} |"


def hallucination_table(results: Results) -> Iterator[str]:
    """Share of altered images that score below the unaltered one, by altered area."""
    areas = areas_of(results)
    yield "| reward | SR is | filling | " + " | ".join(f"{area:.0%}" for area in areas) + " |"
    yield "| --- | --- | --- |" + " ---: |" * len(areas)
    for name, found in results.items():
        for where in WHERE:
            for fillings in (BOTH, ("foreign",), ("texture",), ("own",)):
                shares = [found_shares(found["hallucination"], where, area, fillings) for area in areas]
                cells = " | ".join(f"{share.mean():.3f}" for share in shares)
                yield f"| {name} | {where} | {' + '.join(fillings)} | {cells} |"


def control_table(results: Results) -> Iterator[str]:
    """What pasting an image's own region costs, beside what an alteration costs."""
    yield "| reward | SR is | mean drop of a swap | of the own region | own / swap |"
    yield "| --- | --- | ---: | ---: | ---: |"
    for name, found in results.items():
        for where in WHERE:
            rows = [row for row in found["hallucination"] if row["where"] == where]
            swap = np.mean([row["drop"] for row in rows if row["filling"] != "own"])
            own = np.mean([row["drop"] for row in rows if row["filling"] == "own"])
            yield f"| {name} | {where} | {swap:.5f} | {own:.5f} | {own / swap:.3f} |"


def trap_table(results: Results) -> Iterator[str]:
    """Scores of a mere enlargement, of published restorations and of HR; which is above which; images per second."""
    yield "| reward | image | score |\n| --- | --- | --- |"
    for name, found in results.items():
        for kind, values in found["trap"].items():
            yield f"| {name} | {kind} | {shown(values, name)} |"
    yield ""
    for name, found in results.items():
        for (first, low), (second, high) in pairwise(found["trap"].items()):
            wins = int((np.asarray(high) > np.asarray(low)).sum())
            yield f"{name}: {second} above {first} in {wins} of {len(low)}"
        rate, share = found["cost"]["images_per_second"], found["cost"]["share_of_step"]
        yield f"{name}: {rate:.1f} images of the pairs per second, {share:.1%} of a step"


def summary(results: Results) -> Results:
    """What the tables are made of, without the thousands of single scores."""
    kept: Results = {}
    for name, found in results.items():
        rows = found["hallucination"]
        shares = {
            f"{where}/{filling}/{area}": float(found_shares(rows, where, area, (filling,)).mean())
            for where in WHERE
            for filling in (*BOTH, "own")
            for area in areas_of(results)
        }
        kept[name] = {
            **{pairs: {key: found[pairs][key] for key in ("own", "auc")} for pairs in ("real", "synthetic")},
            "mismatched": {pairs: float(np.mean(found[pairs]["others"])) for pairs in ("real", "synthetic")},
            "invariance": {key: found["invariance"][key] for key in ("spread", "correlation")},
            "found_shares": shares,
            "trap": found["trap"],
            "cost": found["cost"],
        }
    return kept


def areas_of(results: Results) -> list[float]:
    """The altered areas that were tried."""
    return sorted({row["area"] for found in results.values() for row in found["hallucination"]})


def draw(results: Results, path: Path) -> None:
    """Scores of true and mismatched pairs, score against strength, and found swaps against area."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    values_of_pairs = next(iter(results.values()))["real"]["own"]
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    areas = areas_of(results)
    for place, (name, found) in enumerate(results.items()):
        colour = f"C{place}"
        for key, marker, shift in (("own", "o", 0.15), ("others", "x", -0.15)):
            values = found["real"][key]
            axes[0].plot(values, np.full(len(values), place + shift), marker, color=colour, alpha=0.35, ms=4)
        strength, scores = np.array(found["invariance"]["points"]).T
        axes[1].semilogx(strength, scores, ".", color=colour, alpha=0.4, ms=4, label=name)
        for where, style in zip(WHERE, ("-", "--"), strict=True):
            shares = [found_shares(found["hallucination"], where, area, BOTH).mean() for area in areas]
            axes[2].plot(
                [100 * a for a in areas], shares, style, color=colour, marker="o", label=f"{name}, {where}"
            )
    axes[0].set_yticks(range(len(results)), list(results))
    axes[0].set(title=f"{len(values_of_pairs)} real pairs: true (o), mismatched (x)", xlabel="score")
    axes[1].set(title="score of a photograph with ten degradations", xlabel="mean squared difference of LR")
    axes[2].set(title="swapped regions that lower the score", xlabel="altered area", ylim=(0.4, 1.02))
    axes[1].xaxis.set_minor_formatter(NullFormatter())
    axes[2].set_xscale("log")
    axes[2].set_xticks([100 * area for area in areas], [f"{area:.0%}" for area in areas])
    axes[2].xaxis.set_minor_formatter(NullFormatter())
    axes[2].axhline(0.8, color="grey", lw=0.8)
    for axis in axes[1:]:
        axis.legend(fontsize=8, handlelength=4)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
