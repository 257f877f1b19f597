"""Scoring images in one process or in several; the numbers do not depend on how many."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lucidnft.evaluation.metrics import (
    Metric,
    MetricInfo,
    MetricSpec,
    UnavailableMetric,
    build_metric,
    facts_of,
    identity_of,
)
from lucidnft.evaluation.pairing import Case, Problem
from lucidnft.images import UnreadableImageError, read_image, tensor_to_uint8


@dataclass(frozen=True)
class Job:
    """An image and the metrics that have not scored it yet."""

    index: int
    case: Case
    digest: str  # of the restored file
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class JobResult:
    """What became of a job."""

    job: Job
    scores: dict[str, float]
    problems: list[Problem]


class LoadedMetrics:
    """Metrics on one device, each loaded when it is first asked for."""

    def __init__(self, specs: Sequence[MetricSpec], device: str) -> None:
        self.device = device
        self._specs = {spec.name: spec for spec in specs}
        self._built: dict[str, Metric | UnavailableMetric] = {}

    def describe(self, progress: bool = False) -> list[MetricInfo | UnavailableMetric]:
        """Every metric, in order: what it is, or why it is not available."""
        bar = tqdm(self._specs, desc="load metrics", unit="metric", leave=False, disable=not progress)
        return [self._described(name) for name in bar]

    def score(self, job: Job) -> JobResult:
        """Score an image.  Raises RuntimeError for a metric that another process could load and this one cannot."""
        metrics = {name: self._build(name) for name in job.metrics}
        for metric in metrics.values():
            if isinstance(metric, UnavailableMetric):
                raise RuntimeError(
                    f"metric '{metric.name}' was loaded once and cannot be again: {metric.reason}; if memory is short, "
                    "take fewer workers, leave the metric out or score with device=cpu"
                )
        return score_case(job, {n: m for n, m in metrics.items() if isinstance(m, Metric)}, self.device)

    def _described(self, name: str) -> MetricInfo | UnavailableMetric:
        """On a GPU nothing is kept: a checkpoint may have to restore there first."""
        if self.device == "cpu":
            metric = self._build(name)
            return metric.info() if isinstance(metric, Metric) else metric
        info = describe_elsewhere(self._specs[name], self.device)
        gc.collect()
        return info

    def _build(self, name: str) -> Metric | UnavailableMetric:
        if name not in self._built:
            self._built[name] = build_metric(self._specs[name], self.device)
        return self._built[name]


def describe_elsewhere(spec: MetricSpec, device: str) -> MetricInfo | UnavailableMetric:
    """What a metric is on a device, from loading it on the CPU; its identity is that of `build_metric` there."""
    metric = build_metric(spec, "cpu")
    if isinstance(metric, UnavailableMetric):
        return metric
    facts = facts_of(spec, metric.reward, device)
    return replace(metric, identity=identity_of(facts), facts=facts).info()


class Scorer:
    """Scores images in this process, or in several others; this one then loads no metric.

    Worker processes start when there is work for them, load the metrics they are given to compute, and are spread
    over the devices.  A CPU process computes with one thread, since sums depend on how many share them.
    """

    def __init__(self, specs: Sequence[MetricSpec], devices: Sequence[str], workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None
        if workers <= 1:
            self._here = LoadedMetrics(specs, devices[0])
            return
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=context,
            initializer=_start_worker,
            initargs=(specs, devices, context.Value("i", 0), Image.MAX_IMAGE_PIXELS),
        )

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def describe(self, progress: bool) -> list[MetricInfo | UnavailableMetric]:
        """Every metric, in order: what it is, or why it is not available.  Raises RuntimeError as `score`."""
        if self._pool is None:
            return self._here.describe(progress)
        with self._death_explained():
            return self._pool.submit(_describe_in_worker).result()

    def score(self, jobs: Sequence[Job]) -> Iterator[JobResult]:
        """Results in the order in which they are ready.

        Raises:
            RuntimeError: a worker died, for instance because memory ran out, or cannot load a metric.
        """
        if self._pool is None:
            with single_thread(self._here.device):
                for job in jobs:
                    yield self._here.score(job)
            return
        with self._death_explained():
            for done in as_completed([self._pool.submit(_score_in_worker, job) for job in jobs]):
                yield done.result()

    @contextmanager
    def _death_explained(self) -> Iterator[None]:
        try:
            yield
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"one of {self.workers} scoring processes died, perhaps for lack of memory; what was scored is kept: "
                "use fewer workers and run again"
            ) from error


def score_case(job: Job, metrics: Mapping[str, Metric], device: str) -> JobResult:
    """Score one image with every metric of its job; what fails is a problem with the file's and metric's name."""
    case = job.case
    wanted = [metrics[name] for name in job.metrics]
    sides = ["sr", *sorted({side for metric in wanted for side in metric.needs})]
    images, unusable = _read_sides(case, sides, device)
    if "sr" in unusable:
        return JobResult(job, {}, [Problem(case.method, case.stem, unusable["sr"])])
    scores: dict[str, float] = {}
    failed: defaultdict[str, list[str]] = defaultdict(list)
    for metric in wanted:
        blocked = [unusable[side] for side in sorted(metric.needs) if side in unusable]
        if blocked:
            failed["; ".join(blocked)].append(metric.name)
            continue
        try:
            scores[metric.name] = metric.value(job.digest, images["sr"], images.get("lr"), images.get("hr"))
        # Metrics come from many packages and raise anything; one image must not end the evaluation of thousands.
        except Exception as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            failed[f"{kind}{error}".split("\n")[0]].append(metric.name)
    problems = [Problem(case.method, case.stem, reason, tuple(names)) for reason, names in failed.items()]
    return JobResult(job, scores, problems)


def read_8bit(path: Path) -> Tensor:
    """A file as the field scores it: (1, 3, H, W) in [0, 1] on 8-bit levels; deeper files are rounded to them.

    Transparency and colour profiles are not looked at.  Raises UnreadableImageError.
    """
    return tensor_to_uint8(read_image(path).rgb)[None].float() / 255


@contextmanager
def single_thread(device: str) -> Iterator[None]:
    """On the CPU, compute with one thread inside."""
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _read_sides(case: Case, sides: Sequence[str], device: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Images by side, and for sides that cannot be used the reason."""
    images: dict[str, Tensor] = {}
    unusable: dict[str, str] = {}
    for side in sides:
        path = case.files().get(side)
        if path is None:
            continue  # jobs name no metric that cannot do without it
        try:
            images[side] = read_8bit(path).to(device)
        except UnreadableImageError as error:
            unusable[side] = f"the {side.upper()} file {path.name!r} cannot be read: {error.reason}"
    if "sr" in images and "hr" in images and images["sr"].shape != images["hr"].shape:
        sr, hr = (f"{images[side].shape[3]}x{images[side].shape[2]}" for side in ("sr", "hr"))
        unusable["hr"] = f"the restored image is {sr} px, the HR image {hr} px; nothing is resized"
    return images, unusable


_worker: dict[str, LoadedMetrics] = {}  # what a worker process keeps between jobs


def _start_worker(
    specs: Sequence[MetricSpec], devices: Sequence[str], counter: Any, max_image_pixels: int | None
) -> None:
    Image.MAX_IMAGE_PIXELS = max_image_pixels  # what the parent was allowed to read
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the workers
    threading.Thread(target=_follow_parent, daemon=True).start()
    with counter.get_lock():
        device = devices[counter.value % len(devices)]
        counter.value += 1
    if device == "cpu":
        torch.set_num_threads(1)
    _worker["metrics"] = LoadedMetrics(specs, device)


def _follow_parent() -> None:
    """A killed parent cannot stop its workers, which would wait for it for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _describe_in_worker() -> list[MetricInfo | UnavailableMetric]:
    return _worker["metrics"].describe()


def _score_in_worker(job: Job) -> JobResult:
    return _worker["metrics"].score(job)
