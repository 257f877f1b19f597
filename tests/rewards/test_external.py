"""Scorers in another process: what they get, what comes back, and one message for every way to fail."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lucidnft.rewards import ExternalReward, build_reward

MEAN = """
from PIL import Image
print("loading, on standard output")

def build(device, gain=1.0):
    print("built for", device)
    def score(paths):
        print("scoring", len(paths))
        return [gain * Image.open(p).convert("L").getpixel((0, 0)) / 255 for p in paths]
    return score
"""


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Any]:
    made = []

    def make_one(code: str, **settings: Any) -> ExternalReward:
        file = tmp_path / "scorer.py"
        file.write_text(textwrap.dedent(code))
        made.append(ExternalReward(file, **settings))
        return made[-1]

    yield make_one
    for reward in made:
        reward.close()


def greys(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None, None, None].expand(-1, 3, 4, 6)


def test_it_scores_images_whatever_the_scorer_prints(make: Any) -> None:
    reward = make(MEAN, options={"gain": 2.0})
    assert reward(greys(0.2, 0.6, 1.0)).tolist() == pytest.approx([0.4, 1.2, 2.0])
    worker = reward._worker
    assert reward(greys(0.4)).tolist() == pytest.approx([0.8])
    assert reward._worker is worker  # loaded once
    reward.close()
    assert worker.returncode == 0
    assert reward(greys(0.4)).tolist() == pytest.approx([0.8])  # it can come back


def test_lower_is_better_turns_the_sign(make: Any) -> None:
    reward = make(MEAN, lower_is_better=True)
    assert reward(greys(0.2, 0.6)).tolist() == pytest.approx([-0.2, -0.6])


def test_it_gets_the_runs_device_unless_the_settings_name_one(make: Any) -> None:
    code = "def build(device):\n    return lambda paths: [float(device == 'cpu')] * len(paths)\n"
    assert make(code).to("cpu")(greys(0.5)).item() == 1
    assert make(code, device="cuda:1").to("cpu")(greys(0.5)).item() == 0


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_package", "failed: ModuleNotFoundError: .*no_such_package"),
        ("def build(device): raise OSError('no weights')", "failed: OSError: no weights"),
        ("def build(device): return lambda paths: 1 / 0", "failed: ZeroDivisionError"),
        ("def build(device):\n    import os\n    return lambda paths: os._exit(3)", "ended with status 3"),
        ("import time\ndef build(device): time.sleep(60)", "no answer within 1 s"),
    ],
)
def test_a_scorer_that_fails_is_named(make: Any, code: str, message: str) -> None:
    reward = make(code, timeout_seconds=1 if "sleep" in code else 60)
    try:
        with pytest.raises(ChildProcessError, match=f"scorer scorer.py .*{message}"):
            reward(greys(0.5))
    finally:
        if "sleep" in code:
            reward._worker.kill()


def test_too_few_scores_and_scores_that_are_not_finite_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="returned 1 scores for 2 images"):
        make("def build(device): return lambda paths: [1.0]")(greys(0.1, 0.2))
    with pytest.raises(ValueError, match="not finite for 1 of 2"):
        make("def build(device): return lambda paths: [1.0, float('nan')]")(greys(0.1, 0.2))


def test_what_is_not_there_is_said_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="scorer nothing.py is no file; give a Python file or one of unipercept"
    ):
        build_reward({"type": "external", "scorer": "nothing.py"})
    with pytest.raises(ValueError, match="python /nowhere/python is no file"):
        build_reward({"type": "external", "scorer": "unipercept", "python": "/nowhere/python"})


PACKAGE = """
class Model:
    def score(self, device, tokenizer, pixels, settings, question):
        assert (device, tokenizer, settings) == ("cpu", "tokens", {"do_sample": False})
        return [{"quality": 70.0, "aesthetics": 40.0}[question] + pixels]

class UniPerceptRewardInferencer:
    def __init__(self, model_path=None, device="cuda"):
        print("Loading UniPercept model from:", model_path)
        self.device, self.tokenizer, self.gen_cfg = device, "tokens", {"do_sample": False}
        self.model = Model()
        assert model_path == "folder"

    def preprocess_image(self, path):
        from PIL import Image
        return Image.open(path).getpixel((0, 0))[0]
"""


@pytest.mark.parametrize(("aspect", "scores"), [("iqa", [0.70, 0.80]), ("iaa", [0.40, 0.50])])
def test_unipercept_is_asked_as_its_package_asks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aspect: str, scores: list[float]
) -> None:
    (tmp_path / "unipercept_reward.py").write_text(PACKAGE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    settings = {
        "scorer": "unipercept",
        "python": sys.executable,
        "options": {"model_path": "folder", "aspect": aspect},
    }
    reward = build_reward({"type": "external", **settings})
    assert isinstance(reward, ExternalReward)
    assert reward(greys(0.0, 10 / 255)).tolist() == pytest.approx(scores)
    reward.close()


def test_another_aspect_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = ExternalReward("unipercept", options={"aspect": "beauty"})
    with pytest.raises(ChildProcessError, match="aspect is 'beauty', expected one of iaa, iqa, ista"):
        reward.to("cpu")
