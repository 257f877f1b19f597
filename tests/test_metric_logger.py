"""metrics.jsonl is exact and survives kills; pictures and TensorBoard events are there and right."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lucidnft.metric_logger import METRICS_FILE, MetricLogger, read_metrics


def quiet(run_dir, **options) -> MetricLogger:
    return MetricLogger(run_dir, tensorboard=False, **options)


def without_perf(rows):
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]


def test_one_object_per_step_with_every_kind_of_number(tmp_path):
    with quiet(tmp_path) as logger:
        logger.log({"reward/musiq/mean": 1.5, "count": 3, "flag": True, "nothing": None}, 1)
        logger.log(
            {"loss/kl": torch.tensor(0.1), "x": torch.tensor([2], dtype=torch.int64), "y": np.float32(0.5)}, 2
        )
        logger.log({"eval/psnr": 30.0}, 2)
    lines = (tmp_path / METRICS_FILE).read_text().splitlines()
    assert [json.loads(line) for line in lines] == read_metrics(tmp_path)
    assert read_metrics(tmp_path) == [
        {"step": 1, "reward/musiq/mean": 1.5, "count": 3, "flag": True, "nothing": None},
        {"step": 2, "loss/kl": float(torch.tensor(0.1)), "x": 2.0, "y": 0.5, "eval/psnr": 30.0},
    ]


@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_floats_come_back_exactly(tmp_path_factory, values):
    run_dir = tmp_path_factory.mktemp("run")
    with quiet(run_dir) as logger:
        logger.log({f"v{i}": torch.tensor(v, dtype=torch.float64) for i, v in enumerate(values)}, 1)
    row = read_metrics(run_dir)[0]
    assert [row[f"v{i}"] for i in range(len(values))] == values


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, torch.tensor(math.nan)])
def test_what_is_not_finite_is_refused_by_name_and_step_and_not_written(tmp_path, bad):
    with quiet(tmp_path) as logger:
        logger.log({"loss": 1.0}, 1)
        with pytest.raises(ValueError, match=r"not finite at step 2: \{'loss/kl'"):
            logger.log({"fine": 1.0, "loss/kl": bad}, 2)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]


@pytest.mark.parametrize("name", ["step", "", "a//b", "/a", "a b", "a\nb"])
def test_malformed_names_are_refused(tmp_path, name):
    with quiet(tmp_path) as logger, pytest.raises(ValueError, match="is malformed"):
        logger.log({name: 1.0}, 1)


def test_values_that_are_no_single_number_are_refused(tmp_path):
    with quiet(tmp_path) as logger:
        with pytest.raises(ValueError, match=r"'a' has shape \(2,\)"):
            logger.log({"a": torch.ones(2)}, 1)
        with pytest.raises(ValueError, match="'a' is a str"):
            logger.log({"a": "high"}, 1)


def test_steps_do_not_go_back_and_values_do_not_change(tmp_path):
    with quiet(tmp_path) as logger:
        logger.log({"a": 1.0}, 5)
        logger.log({"a": 1.0}, 5)
        with pytest.raises(ValueError, match=r"'a' was logged as 1.0 and as 2.0 for step 5"):
            logger.log({"a": 2.0}, 5)
        with pytest.raises(ValueError, match="cannot log step 4: step 5 is already"):
            logger.log({"a": 1.0}, 4)
        with pytest.raises(ValueError, match="step is -1"):
            logger.log({"a": 1.0}, -1)
    assert read_metrics(tmp_path) == [{"step": 5, "a": 1.0}]


def log_step(logger, step):
    with logger.phase("rollout"):
        logger.log({"loss": step / 3}, step)
    if step % 2 == 0:
        logger.log({"eval/psnr": 20 + step / 7}, step)


@pytest.mark.parametrize(
    "tail", [b"", b'{"step": 7, "lo', b'{"step": 6', b"\x00\x00", b'{"step": 7, "loss": 1}']
)
@pytest.mark.parametrize("resumed_at", [2, 3, 4, 6])
def test_a_killed_and_resumed_run_leaves_the_file_of_an_unbroken_one(tmp_path, tail, resumed_at):
    with quiet(tmp_path / "unbroken") as logger:
        for step in range(1, 9):
            log_step(logger, step)
    with quiet(tmp_path / "killed") as logger:
        for step in range(1, 7):
            log_step(logger, step)
    with open(tmp_path / "killed" / METRICS_FILE, "ab") as file:
        file.write(tail)
    with quiet(tmp_path / "killed", step0=resumed_at) as logger:
        for step in range(resumed_at + 1, 9):
            log_step(logger, step)
    assert without_perf(read_metrics(tmp_path / "killed")) == without_perf(
        read_metrics(tmp_path / "unbroken")
    )
    assert len(read_metrics(tmp_path / "killed")) == 8


def test_a_resumed_run_can_complete_and_repeat_the_line_of_its_first_step(tmp_path):
    with quiet(tmp_path) as logger:
        logger.log({"loss": 1.0}, 2)
    for _ in range(2):
        with quiet(tmp_path, step0=2) as logger:
            logger.log({"loss": 1.0, "eval/psnr": 3.0}, 2)
    with quiet(tmp_path, step0=2) as logger, pytest.raises(ValueError, match="logged as 3.0 and as 4.0"):
        logger.log({"eval/psnr": 4.0}, 2)
    assert read_metrics(tmp_path) == [{"step": 2, "loss": 1.0, "eval/psnr": 3.0}]


def test_a_fresh_start_drops_what_was_there(tmp_path):
    with quiet(tmp_path) as logger:
        logger.log({"a": 1.0}, 0)
    with quiet(tmp_path) as logger:
        logger.log({"a": 2.0}, 0)
    assert read_metrics(tmp_path) == [{"step": 0, "a": 2.0}]


def test_a_resume_without_an_old_file_starts_one(tmp_path):
    with quiet(tmp_path, step0=50) as logger:
        logger.log({"a": 2.0}, 51)
    assert read_metrics(tmp_path) == [{"step": 51, "a": 2.0}]


def test_damage_before_the_last_line_is_an_error(tmp_path):
    (tmp_path / METRICS_FILE).write_bytes(b'{"step": 1}\nnoise\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged at byte 12: b'noise"):
        read_metrics(tmp_path)
    with pytest.raises(ValueError, match="damaged"):
        quiet(tmp_path, step0=2)


def test_reading_nothing_is_an_error_and_a_running_file_is_not(tmp_path):
    with pytest.raises(FileNotFoundError, match="is .* the folder of a run"):
        read_metrics(tmp_path)
    (tmp_path / METRICS_FILE).write_bytes(b'{"step": 1, "a": 2}\n{"step": 2, "a"')
    assert read_metrics(tmp_path) == [{"step": 1, "a": 2}]


KILLED = """
import os, signal, sys
from lucidnft.metric_logger import MetricLogger
logger = MetricLogger(sys.argv[1], tensorboard=False)
logger.log({"a": 1.0}, 1)
logger.log({"b": 2.0}, 1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_logged_line_survives_sigkill(tmp_path):
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=120).returncode == -9
    assert read_metrics(tmp_path) == [{"step": 1, "a": 1.0, "b": 2.0}]


def test_phases_add_up_between_lines_and_start_again(tmp_path):
    with quiet(tmp_path) as logger:
        for _ in range(2):
            with logger.phase("rollout", synchronize=True):
                time.sleep(0.02)
        with pytest.raises(RuntimeError), logger.phase("failed"):
            raise RuntimeError
        logger.log({"a": 1.0}, 1)
        with logger.phase("rollout"):
            pass
        logger.log({"a": 1.0}, 2)
        logger.log({"a": 1.0}, 3)
    first, second, third = read_metrics(tmp_path)
    assert 0.04 <= first["perf/rollout_seconds"] < 2
    assert 0 <= second["perf/rollout_seconds"] < 0.02
    assert "perf/failed_seconds" in first
    assert third == {"step": 3, "a": 1.0}


def test_the_grid_shows_each_image_in_its_place(tmp_path):
    rows = torch.rand(2, 3, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    rows[0, 0, 0, 0, 0] = 1.7
    with quiet(tmp_path) as logger:
        path = logger.log_images("eval/before_after", rows, ["LR", "base", "tuned"], 40)
    assert path == tmp_path / "images" / "eval-before_after-000040.png"
    picture = np.asarray(Image.open(path))
    wanted = (rows.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).numpy()
    top = picture.shape[0] - (2 * 8 + 4)
    for row in range(2):
        for column in range(3):
            y, x = top + row * 12, column * 16
            assert np.array_equal(picture[y : y + 8, x : x + 12], wanted[row, column])
    titles = picture[:top]
    assert picture.shape[1] == 3 * 12 + 2 * 4
    assert all((titles[:, c * 16 : c * 16 + 12] < 128).any() for c in range(3)), "a title is missing"


@pytest.mark.parametrize("shape", [(2, 2, 3, 8, 8), (2, 3, 1, 8, 8), (3, 3, 8, 8)])
def test_a_wrong_grid_is_refused(tmp_path, shape):
    with (
        quiet(tmp_path) as logger,
        pytest.raises(ValueError, match=r"image grid 'g' has shape .* 3 captions"),
    ):
        logger.log_images("g", torch.zeros(shape), ["a", "b", "c"], 1)


def test_a_disabled_logger_touches_nothing(tmp_path):
    with MetricLogger(tmp_path / "run", enabled=False) as logger:
        with logger.phase("rollout"):
            logger.log({"a": math.nan}, 1)
        assert logger.log_images("g", torch.zeros(1, 1, 3, 4, 4), ["a"], 1) is None
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_scalars_and_images_and_forgets_repeated_steps(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricLogger(tmp_path) as logger:
        for step in (1, 2, 3):
            logger.log({"loss/nft": step / 2, "gap": None}, step)
        logger.log_images("grid", torch.rand(1, 2, 3, 8, 8), ["a", "b"], 3)
    assert [e.step for e in EventAccumulator(str(tmp_path / "tensorboard")).Reload().Images("grid")] == [3]
    time.sleep(1.1)  # event files are named by whole seconds
    with MetricLogger(tmp_path, step0=2) as logger:
        logger.log({"loss/nft": 9.0}, 3)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss/nft"]
    assert [(e.step, e.value) for e in events.Scalars("loss/nft")] == [(1, 0.5), (2, 1.0), (3, 9.0)]


def test_a_negative_start_is_refused(tmp_path):
    with pytest.raises(ValueError, match="step0 is -2"):
        quiet(tmp_path, step0=-2)
