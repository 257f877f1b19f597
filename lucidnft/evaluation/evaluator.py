"""An evaluation: methods x images x metrics -> scores, and every score that is missing with its reason."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from lucidnft.checkpoint.tensor_files import first_few
from lucidnft.evaluation.cache import ScoreCache
from lucidnft.evaluation.metrics import MetricInfo, MetricSpec, UnavailableMetric, check_names, metric_specs
from lucidnft.evaluation.pairing import Case, Pairs, Problem, by_stem, check_sides, pair_method
from lucidnft.evaluation.protocols import Protocol
from lucidnft.evaluation.restoring import check_runs, restore_method
from lucidnft.evaluation.score_plan import plan_scores
from lucidnft.evaluation.scoring import Scorer
from lucidnft.evaluation.settings import EvaluationConfig, check_folders
from lucidnft.images import UnreadableImageError, read_size
from lucidnft.inference.checkpoints import BackboneConfig
from lucidnft.inference.device import choose_device
from lucidnft.rewards.full_reference import FullReferenceConfig
from lucidnft.rewards.iqa import IQAConfig, full_reference_names

CACHE_FILE = "cache.jsonl"
MOST_WORKERS = 8  # that are started unless more are asked for; each loads what it computes
LOSSY = frozenset({".jpg", ".jpeg", ".webp", ".gif"})
BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_inv_fmt}]"


@dataclass
class Evaluation:
    """Everything that tables, files and the report are made of."""

    benchmark: str
    protocol: Protocol
    methods: tuple[str, ...]
    baseline: str | None
    metrics: tuple[MetricInfo, ...] = ()
    folders: dict[str, str] = field(default_factory=dict)  # method -> its images
    cases: dict[str, dict[str, Case]] = field(default_factory=dict)  # method -> stem -> files
    scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)  # method, metric, stem
    problems: list[Problem] = field(default_factory=list)
    unavailable: list[UnavailableMetric] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_computed: int = 0  # scores that were not in the cache

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for has a score."""
        return not self.problems and not self.unavailable


def evaluate(
    config: EvaluationConfig,
    *,
    bases: Mapping[str, BackboneConfig] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Score the saved files of every method with every metric, as far as that can be done.

    bases: for every method of `run` with a base_config what `lucidnft.config.base_section` reads from that file.

    Scores are kept in output_dir/cache.jsonl as they are computed: a killed evaluation continues when it is started
    again, and one with another metric or method computes only what is new.

    Raises:
        ValueError: a metric is unknown or lacks an input, a folder is missing or empty; nothing was scored then.
        RuntimeError: a scoring process died; what was scored is kept.
    """
    check_folders(config)
    check_names(config.metrics or ())
    lr = None if config.lr is None else Path(config.lr)
    check_runs(config.run, bases or {}, lr, Path(config.output_dir))
    devices, workers = plan_workers(config.device, config.workers)
    result = Evaluation(config.benchmark, config.conventions, config.method_names, config.baseline)
    specs = metric_specs(config)
    if config.hr is None:
        left_out = _without_inputs(_needs_by_name(specs), config, result)
        specs = [spec for spec in specs if spec.name not in left_out]
    with Scorer(specs, devices, workers) as scorer:
        metrics = _available(scorer.describe(progress), result)
        for name in _without_inputs({name: m.needs for name, m in metrics.items()}, config, result):
            del metrics[name]
        result.metrics = tuple(metrics.values())
        needed = {
            side: [name for name, metric in metrics.items() if side in metric.needs] for side in ("hr", "lr")
        }
        _check_benchmark(config, needed, result)
        # Restoring may take hours: what can be wrong before it is said before it.
        pairs = {name: _pairs_of(name, Path(path), config, needed) for name, path in config.methods.items()}
        result.folders = {name: config.methods.get(name, "") for name in result.methods}
        with ScoreCache(Path(config.output_dir) / CACHE_FILE) as cache:
            for method in config.run:
                folder, failed = _restore(method, config, bases or {}, progress)
                result.folders[method] = str(folder)
                pairs[method] = _pairs_of(method, folder, config, needed, failed)
            for method in result.methods:
                _take(result, method, pairs[method])
                result.scores[method] = {name: {} for name in metrics}
            result.notes += _notes(result, config)
            _score(result, metrics, scorer, cache, progress)
    order = {name: index for index, name in enumerate(result.methods)}
    result.problems = sorted(
        set(result.problems), key=lambda p: (order[p.method], p.stem, p.reason, p.metrics)
    )
    return result


def plan_workers(device: str, workers: int) -> tuple[list[str], int]:
    """Devices, and the number of processes: 0 means one for each GPU, or for each core up to MOST_WORKERS.

    Raises:
        ValueError: there is no such device.
    """
    chosen = choose_device(device, setting="device=")
    if chosen.type == "cuda" and chosen.index is None:
        devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    else:
        devices = [str(chosen)]
    if workers:
        return devices, workers
    cores = len(os.sched_getaffinity(0))
    return devices, len(devices) if chosen.type == "cuda" else min(cores, MOST_WORKERS)


def _available(
    described: Iterable[MetricInfo | UnavailableMetric], result: Evaluation
) -> dict[str, MetricInfo]:
    metrics = {}
    for metric in described:
        if isinstance(metric, UnavailableMetric):
            result.unavailable.append(metric)
        else:
            metrics[metric.name] = metric
    return metrics


def _needs_by_name(specs: Sequence[MetricSpec]) -> dict[str, frozenset[str]]:
    """What metrics need, as far as their settings tell it before their weights are fetched."""
    try:
        of_pyiqa = frozenset(full_reference_names())
    except ImportError:
        of_pyiqa = frozenset()  # loading them says what is missing
    return {
        spec.name: frozenset({"hr"})
        if isinstance(spec.settings, FullReferenceConfig)
        or (isinstance(spec.settings, IQAConfig) and spec.settings.metric in of_pyiqa)
        else frozenset()
        for spec in specs
    }


def _without_inputs(
    needs: Mapping[str, frozenset[str]], config: EvaluationConfig, result: Evaluation
) -> frozenset[str]:
    """The metrics whose inputs are not there.

    Raises:
        ValueError: one that was asked for by name lacks an input; those of a protocol are left out with a note.
    """
    given = config.benchmark_folders.keys()
    lacking = {name: sorted(sides - given) for name, sides in needs.items() if sides - given}
    by_protocol = set(config.conventions.metrics) if config.metrics is None else set()
    refused = [f"'{n}' needs {' and '.join(sides)}" for n, sides in lacking.items() if n not in by_protocol]
    if refused:
        raise ValueError(f"metric {'; metric '.join(refused)}: give that folder, or leave the metric out")
    if lacking:
        result.notes.append(f"Left out, since there are no HR images: {', '.join(lacking)}.")
    return frozenset(lacking)


def _check_benchmark(
    config: EvaluationConfig, needed: Mapping[str, Sequence[str]], result: Evaluation
) -> None:
    """Raise a ValueError where the files of a benchmark cannot belong together; note what suffixes leave out."""
    folders, suffixes = config.benchmark_folders, config.benchmark_suffixes
    if not config.run and not needed["lr"]:
        folders.pop("lr", None)  # its names do not matter
    check_sides(folders, suffixes)
    for side, folder in folders.items():
        others = by_stem(folder, suffixes[side])[1]
        if others:
            result.notes.append(
                f"{len(others)} images in {folder} do not end in {side}_suffix '{suffixes[side]}' and were left out "
                f"({first_few(others)})."
            )


def _restore(
    method: str, config: EvaluationConfig, bases: Mapping[str, BackboneConfig], progress: bool
) -> tuple[Path, dict[str, str]]:
    assert config.lr is not None  # the settings have been checked for it
    try:
        return restore_method(
            method, config.run[method], Path(config.lr), Path(config.output_dir), device=config.device,
            lr_suffix=config.lr_suffix, base=bases.get(method), progress=progress,
        )  # fmt: skip
    except (ValueError, FileNotFoundError) as error:
        if method == next(iter(config.run)):
            raise  # nothing was started
        raise RuntimeError(f"run.{method}: {error}; what was restored before is kept") from error


def _pairs_of(
    method: str,
    folder: Path,
    config: EvaluationConfig,
    needed: Mapping[str, Sequence[str]],
    failed: Mapping[str, str] | None = None,
) -> Pairs:
    # what was restored here has LR's names
    suffix = config.sr_suffix.get(method, "") if failed is None else config.lr_suffix
    return pair_method(
        method, folder, config.benchmark_folders, failed, suffix=suffix, suffixes=config.benchmark_suffixes,
        needed=needed,
    )  # fmt: skip


def _take(result: Evaluation, method: str, pairs: Pairs) -> None:
    result.cases[method] = {case.stem: case for case in pairs.cases}
    result.problems += pairs.problems
    if pairs.others:
        result.notes.append(
            f"{len(pairs.others)} images in the folder of {method} do not end in '{pairs.suffix}' and were left out "
            f"({first_few(pairs.others)})."
        )


def _score(
    result: Evaluation, metrics: Mapping[str, MetricInfo], scorer: Scorer, cache: ScoreCache, progress: bool
) -> None:
    cases = (case for method in result.methods for case in result.cases[method].values())
    plan = plan_scores(cases, metrics, cache)
    bar = tqdm(total=len(plan.jobs), desc="score", unit="image", bar_format=BAR_FORMAT, disable=not progress)
    failed: list[Problem] = []
    with bar:
        for done in scorer.score(plan.jobs):
            case = done.job.case
            cache.add(
                (plan.keys[case.method, case.stem][name], name, case.stem, score)
                for name, score in done.scores.items()
            )
            result.num_computed += len(done.scores)
            failed += done.problems
            bar.update()
    for (method, stem), names in plan.keys.items():
        for name, key in names.items():
            score = cache.get(key)
            if score is not None:
                result.scores[method][name][stem] = score
    result.problems += [*plan.problems, *failed, *plan.of_copies(failed)]


def _notes(result: Evaluation, config: EvaluationConfig) -> Iterable[str]:
    """What makes numbers differ from a paper's although nothing went wrong."""
    for method, cases in result.cases.items():
        lossy = [stem for stem, case in cases.items() if case.sr.suffix.lower() in LOSSY]
        if lossy:
            yield (
                f"{len(lossy)} of {len(cases)} images of {method} are JPEG, WebP or GIF files ({first_few(lossy)}); "
                "their compression moves no-reference metrics: save PNG."
            )
    size = config.conventions.hr_size
    if size is not None and config.hr is not None:
        files = {case.hr for cases in result.cases.values() for case in cases.values() if case.hr is not None}
        other = sorted(path.name for path in files if _size_of(path) not in ((size, size), None))
        if other:
            yield (
                f"{len(other)} of {len(files)} HR images are not {size}x{size} pixels ({first_few(other)}): the "
                f"numbers do not compare with published ones of protocol {config.protocol}."
            )


def _size_of(path: Path) -> tuple[int, int] | None:
    try:
        return read_size(path)
    except UnreadableImageError:
        return None  # scoring reports it by name
