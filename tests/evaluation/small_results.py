"""Results of an evaluation made by hand: a few methods, six images, no files."""

from __future__ import annotations

from pathlib import Path

from lucidnft.evaluation.evaluator import Evaluation
from lucidnft.evaluation.metrics import MetricInfo
from lucidnft.evaluation.pairing import Case
from lucidnft.evaluation.protocols import PROTOCOLS

STEMS = [f"s{i}" for i in range(6)]


def evaluation(**methods: tuple[float, float]) -> Evaluation:
    """Six images whose psnr and lpips are a method's two numbers plus the same spread."""
    names = tuple(methods)
    result = Evaluation("Bench_1", PROTOCOLS["rgb"], names, names[0] if len(names) > 1 else None)
    result.metrics = (
        MetricInfo("psnr", False, frozenset({"hr"}), {}),
        MetricInfo("lpips", True, frozenset({"hr"}), {}),
    )
    for name, (psnr, lpips) in methods.items():
        result.folders[name] = f"folder/{name}"
        result.cases[name] = {stem: Case(name, stem, Path(f"{stem}.png")) for stem in STEMS}
        result.scores[name] = {
            "psnr": {stem: psnr * (1 + i / 100) + i for i, stem in enumerate(STEMS)},
            "lpips": {stem: lpips * (1 + i / 100) for i, stem in enumerate(STEMS)},
        }
    return result


def with_scores(base: list[float], ours: list[float], metric: str = "psnr") -> Evaluation:
    """Two methods with these scores of one metric."""
    result = evaluation(base=(20.0, 0.3), ours=(20.0, 0.3))
    result.metrics = tuple(m for m in result.metrics if m.name == metric)
    for name, scores in (("base", base), ("ours", ours)):
        stems = [f"s{i:02d}" for i in range(len(scores))]
        result.scores[name] = {metric: dict(zip(stems, scores, strict=True))}
        result.cases[name] = {stem: Case(name, stem, Path(f"{stem}.png")) for stem in stems}
    return result
