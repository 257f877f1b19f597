"""Tables and figure of `benchmarks/consistency.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from rewards import interval

Results = dict[str, list[dict[str, Any]]]
"""Per reward, what was found with each seed of it."""
WHERE = ("degraded", "restored", "across")
BOTH = ("foreign", "texture")


def per_seed(found: list[dict[str, Any]], value: Callable[[dict[str, Any]], Any]) -> np.ndarray:
    """(seeds, ...) array of a value."""
    return np.array([value(seed) for seed in found], dtype=np.float64)


def shown(values: np.ndarray, key: str) -> str:
    """(seeds, images) -> mean, its 95 % bootstrap interval over images, and the least and most of several seeds."""
    mean, low, high = interval(values.mean(axis=0), key)
    return f"{mean:.4g} [{low:.4g}, {high:.4g}]{seed_range(values.mean(axis=1))}"


def seed_range(values: np.ndarray, digits: str = ".4g") -> str:
    """' (least .. most)' of a number per seed; nothing for one seed."""
    return f" ({values.min():{digits}} .. {values.max():{digits}})" if len(values) > 1 else ""


def found_shares(
    rows: list[dict[str, Any]], where: str, area: float, fillings: tuple[str, ...]
) -> np.ndarray:
    """Per photograph: mean share of its swaps of this area that score below the unaltered image."""
    chosen = [r for r in rows if r["where"] == where and r["area"] == area and r["filling"] in fillings]
    by_photograph: dict[int, list[float]] = {}
    for row in chosen:
        by_photograph.setdefault(row["photograph"], []).append(row["found"])
    return np.array([np.mean(found) for found in by_photograph.values()])


def tables(results: Results) -> str:
    """Markdown, and a line per comparison of neighbours."""
    parts = (matching_table, invariance_table, hallucination_table, control_table, trap_table)
    return "\n\n".join("\n".join(part(results)) for part in parts)


def matching_table(results: Results) -> Iterator[str]:
    """Mean score of true and of mismatched pairs, and how well it tells them apart."""
    yield "| reward | pairs | true | mismatched | AUC |\n| --- | --- | --- | ---: | --- |"
    for name, found in results.items():
        for pairs in ("real", "synthetic"):
            own = per_seed(found, lambda seed, pairs=pairs: seed[pairs]["own"])
            others = per_seed(found, lambda seed, pairs=pairs: np.mean(seed[pairs]["others"]))
            auc = per_seed(found, lambda seed, pairs=pairs: seed[pairs]["auc"])
            yield (
                f"| {name} | {pairs} | {shown(own, name)} | {others.mean():.3f} "
                f"| {auc.mean():.4f}{seed_range(auc, '.4f')} |"
            )


def invariance_table(results: Results) -> Iterator[str]:
    """Spread of the score over degradations of one image, absolute and in units of what matching is worth."""
    yield "| reward | spread in a pool | of the gap true - mismatched | rank correlation with strength |"
    yield "| --- | --- | ---: | --- |"
    for name, found in results.items():
        gap = per_seed(
            found, lambda seed: np.mean(seed["synthetic"]["own"]) - np.mean(seed["synthetic"]["others"])
        )
        spread, correlation = (
            per_seed(found, lambda seed, key=key: seed["invariance"][key])
            for key in ("spread", "correlation")
        )
        share = (spread.mean(axis=1) / gap).mean()
        yield f"| {name} | {shown(spread, name)} | {share:.2%} | {shown(correlation, name)} |"


def hallucination_table(results: Results) -> Iterator[str]:
    """Share of altered images that score below the unaltered one, by altered area."""
    areas = areas_of(results)
    yield "| reward | SR is | filling | " + " | ".join(f"{area:.0%}" for area in areas) + " |"
    yield "| --- | --- | --- |" + " --- |" * len(areas)
    for where in WHERE:
        for fillings in (BOTH, ("foreign",), ("texture",), ("own",)):
            for name, found in results.items():
                shares = [shares_of(found, where, area, fillings).mean(axis=1) for area in areas]
                cells = " | ".join(f"{s.mean():.3f}{seed_range(s, '.3f')}" for s in shares)
                yield f"| {name} | {where} | {' + '.join(fillings)} | {cells} |"


def shares_of(found: list[dict[str, Any]], where: str, area: float, fillings: tuple[str, ...]) -> np.ndarray:
    """(seeds, photographs) of `found_shares`."""
    return per_seed(found, lambda seed: found_shares(seed["hallucination"], where, area, fillings))


def control_table(results: Results) -> Iterator[str]:
    """What pasting an image's own region costs, beside what an alteration costs."""
    yield "| reward | SR is | mean drop of a swap | of the own region | own / swap |"
    yield "| --- | --- | ---: | ---: | --- |"
    for name, found in results.items():
        for where in WHERE[:2]:
            swap = per_seed(found, lambda seed, where=where: mean_drop(seed, where, BOTH))
            own = per_seed(found, lambda seed, where=where: mean_drop(seed, where, ("own",)))
            share = own / swap
            yield (
                f"| {name} | {where} | {swap.mean():.5f} | {own.mean():.5f} "
                f"| {share.mean():.4f}{seed_range(share, '.4f')} |"
            )


def mean_drop(found: dict[str, Any], where: str, fillings: Iterable[str]) -> float:
    """By how much swaps lower the score, on average."""
    rows = [row for row in found["hallucination"] if row["where"] == where and row["filling"] in fillings]
    return float(np.mean([row["drop"] for row in rows]))


def trap_table(results: Results) -> Iterator[str]:
    """Scores of a mere enlargement, of published restorations and of HR; which is above which; images per second."""
    yield "| reward | image | score |\n| --- | --- | --- |"
    for name, found in results.items():
        for kind in found[0]["trap"]:
            values = per_seed(found, lambda seed, kind=kind: seed["trap"][kind])
            yield f"| {name} | {kind} | {shown(values, name)} |"
    yield ""
    for name, found in results.items():
        for first, second in pairwise(found[0]["trap"]):
            wins = per_seed(
                found, lambda s, a=first, b=second: np.sum(np.array(s["trap"][b]) > np.array(s["trap"][a]))
            )
            count = len(found[0]["trap"][first])
            yield f"{name}: {second} above {first} in {', '.join(f'{w:.0f}' for w in wins)} of {count}"
        rate, share = found[0]["cost"]["images_per_second"], found[0]["cost"]["share_of_step"]
        yield f"{name}: {rate:.1f} images of the pairs per second, {share:.1%} of a step"


def summary(results: Results) -> Results:
    """What the tables are made of, without the thousands of single scores."""
    areas = areas_of(results)
    kept: Results = {name: [] for name in results}
    for name, seeds in results.items():
        for found in seeds:
            rows = found["hallucination"]
            shares = {
                f"{where}/{filling}/{area}": float(found_shares(rows, where, area, (filling,)).mean())
                for where in WHERE
                for filling in (*BOTH, "own")
                for area in areas
            }
            entry = {
                **{
                    pairs: {key: found[pairs][key] for key in ("own", "auc")}
                    for pairs in ("real", "synthetic")
                },
                "mismatched": {
                    pairs: float(np.mean(found[pairs]["others"])) for pairs in ("real", "synthetic")
                },
                "invariance": {key: found["invariance"][key] for key in ("spread", "correlation")},
                "found_shares": shares,
                "trap": found["trap"],
            }
            kept[name].append({**entry, "cost": found["cost"]} if "cost" in found else entry)
    return kept


def areas_of(results: Results) -> list[float]:
    """The altered areas that were tried."""
    return sorted({row["area"] for row in next(iter(results.values()))[0]["hallucination"]})
