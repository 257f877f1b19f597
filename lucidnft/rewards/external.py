"""Rewards of packages that cannot live beside this one: scored by a process in an environment of their own.

Scorers built on vision-language models pin the transformers of their day.  A worker process of another Python
environment loads such a scorer once; images go to it as 8-bit PNG files, scores come back as JSON lines.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from lucidnft.images import save_image
from lucidnft.rewards.base import Reference, Reward, RewardCard
from lucidnft.schema import ConfigModel

_SCORERS = Path(__file__).parent / "scorers"
BUNDLED = ("unipercept",)
"""Names of the scorers that come with the library."""


class ExternalReward(Reward):
    """Scores of a scorer in another process; no gradient."""

    def __init__(
        self,
        scorer: str | Path,
        *,
        python: str | None = None,
        options: dict[str, Any] | None = None,
        device: str | None = None,
        lower_is_better: bool = False,
        timeout_seconds: float = 1800.0,
    ) -> None:
        """The worker starts when the reward is moved to its device, or with the first score.

        Args:
            scorer: "unipercept", or a Python file that defines build(**options) -> (paths -> numbers).
            python: the interpreter of the scorer's environment; None takes this one.
            options: of build, beside device.
            device: of the scorer; None takes the run's.
            lower_is_better: turns the sign of its numbers.
            timeout_seconds: to load the scorer (a download included), and for every answer.

        Raises:
            ValueError: there is no such scorer or interpreter.
        """
        self.scorer = _SCORERS / f"{scorer}.py" if scorer in BUNDLED else Path(scorer)
        self.python = python or sys.executable
        if not self.scorer.is_file():
            raise ValueError(f"scorer {scorer} is no file; give a Python file or one of {', '.join(BUNDLED)}")
        if not Path(self.python).is_file():
            raise ValueError(
                f"python {self.python} is no file; give the interpreter of the scorer's environment"
            )
        self.options, self.device = dict(options or {}), device
        self.sign, self.timeout_seconds = (-1.0 if lower_is_better else 1.0), timeout_seconds
        self._worker: subprocess.Popen[str] | None = None
        self.card = RewardCard(
            name=self.scorer.stem,
            lower_is_better=lower_is_better,
            value_range=(0.0, 1.0) if scorer == "unipercept" else None,
            note=f"Scored by {self.scorer.name} in another process.",
        )

    def to(self, device: torch.device | str) -> ExternalReward:
        """Start the worker on the device, unless the settings name another.

        Raises:
            ChildProcessError: the scorer could not be loaded; what it printed is above.
        """
        self.device = self.device or str(device)
        self._start()
        return self

    def score(self, sr: Tensor, reference: Reference) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N,) float32.

        Raises:
            ChildProcessError: the scorer failed or ended.
        """
        worker = self._start()
        with tempfile.TemporaryDirectory(prefix="lucidnft-external-") as folder:
            paths = [str(Path(folder) / f"{i}.png") for i in range(sr.shape[0])]
            for path, image in zip(paths, sr.float().cpu(), strict=True):
                save_image(path, image)
            assert worker.stdin is not None
            try:
                worker.stdin.write(json.dumps({"images": paths}) + "\n")
                worker.stdin.flush()
            except BrokenPipeError as error:
                raise ChildProcessError(self._ended(worker)) from error
            scores = self._answer(worker)["scores"]
        return self.sign * torch.tensor(scores, dtype=torch.float32, device=sr.device)

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            worker, self._worker = self._worker, None
            for stream in (worker.stdin, worker.stdout):
                assert stream is not None
                stream.close()
            worker.wait(timeout=30)

    def __del__(self) -> None:
        if getattr(self, "_worker", None) is not None:
            self.close()

    def _start(self) -> subprocess.Popen[str]:
        if self._worker is None:
            options = {"device": self.device or "cpu", **self.options}
            self._worker = subprocess.Popen(
                [self.python, str(_SCORERS / "worker.py"), str(self.scorer.absolute()), json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self._answer(self._worker)
        return self._worker

    def _answer(self, worker: subprocess.Popen[str]) -> dict[str, Any]:
        assert worker.stdout is not None
        line = _line(worker.stdout, self.timeout_seconds)
        if line is None:
            raise ChildProcessError(
                f"scorer {self.scorer.name} gave no answer within {self.timeout_seconds:g} s; raise "
                "timeout_seconds if it is still downloading or slow"
            )
        if not line:
            raise ChildProcessError(self._ended(worker))
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ChildProcessError(
                f"scorer {self.scorer.name} in {self.python} failed: {answer['error']}; see its output above"
            )
        return answer

    def _ended(self, worker: subprocess.Popen[str]) -> str:
        return (
            f"scorer {self.scorer.name} in {self.python} ended with status {worker.wait(timeout=30)}; "
            "see its output above"
        )


def _line(stream: IO[str], timeout: float) -> str | None:
    """The next line, "" at the end of the stream, None when none comes in time.

    An answer is one line, and no request is sent before it is read, so nothing waits in the stream's buffer.
    """
    ready, _, _ = select.select([stream], [], [], timeout)
    return stream.readline() if ready else None


class ExternalConfig(ConfigModel):
    """Settings of `ExternalReward`."""

    type: Literal["external"] = "external"
    scorer: str  # unipercept, or a Python file that defines build(**options) -> (image paths -> numbers)
    python: str | None = None  # the interpreter of the scorer's environment; null: this one
    options: dict[str, str | float | int | bool | None] = {}  # of build
    device: str | None = None  # of the scorer; null: that of the run
    lower_is_better: bool = False
    timeout_seconds: float = Field(default=1800.0, gt=0)
    weight: float = 1.0

    def build(self) -> ExternalReward:
        """Make the reward; its process starts when it is moved to a device."""
        return ExternalReward(
            self.scorer,
            python=self.python,
            options=dict(self.options),
            device=self.device,
            lower_is_better=self.lower_is_better,
            timeout_seconds=self.timeout_seconds,
        )
