"""A checkpoint folder is whole or is not found, whatever happened while it was written."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lucidnft.checkpoint import (
    CheckpointWriteError,
    check_checkpoint,
    checkpoint_folder,
    latest_checkpoint,
    load_json,
    prune_checkpoints,
    save_json,
    save_tensors,
)
from lucidnft.checkpoint import folders as folders_module


def write_checkpoint(run_dir: Path, step: int, text: str = "x") -> Path:
    with checkpoint_folder(run_dir, step) as folder:
        save_json(folder / "state.json", {"step": step, "text": text})
        save_tensors(folder / "policy.safetensors", {"a": torch.ones(50)}, {})
    return run_dir / f"checkpoint-{step:06d}"


def names(run_dir: Path) -> list[str]:
    return sorted(p.name for p in run_dir.iterdir())


def test_the_final_name_appears_only_when_all_is_written(tmp_path):
    with checkpoint_folder(tmp_path, 200) as folder:
        assert folder.name == ".checkpoint-000200.partial"
        save_json(folder / "state.json", {})
        assert latest_checkpoint(tmp_path) is None
        assert names(tmp_path) == [".checkpoint-000200.partial"]
    assert names(tmp_path) == ["checkpoint-000200"]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-000200"
    assert check_checkpoint(tmp_path / "checkpoint-000200") == 200


def test_latest_is_by_number_and_none_without_any(tmp_path):
    assert latest_checkpoint(tmp_path / "no_such_run") is None
    assert latest_checkpoint(tmp_path) is None
    for step in (900_000, 1_000_000, 20):
        write_checkpoint(tmp_path, step)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-1000000"


def test_an_error_in_the_body_leaves_the_older_checkpoint_and_no_remains(tmp_path):
    write_checkpoint(tmp_path, 100)
    with pytest.raises(RuntimeError, match="boom"), checkpoint_folder(tmp_path, 200) as folder:
        save_json(folder / "state.json", {})
        raise RuntimeError("boom")
    assert names(tmp_path) == ["checkpoint-000100"]


def test_a_failing_rewrite_of_the_same_step_keeps_the_first(tmp_path):
    write_checkpoint(tmp_path, 100, "first")
    with pytest.raises(RuntimeError), checkpoint_folder(tmp_path, 100):
        raise RuntimeError
    assert load_json(tmp_path / "checkpoint-000100" / "state.json")["text"] == "first"


def test_a_rewrite_of_the_same_step_replaces_it(tmp_path):
    write_checkpoint(tmp_path, 100, "first")
    write_checkpoint(tmp_path, 100, "second")
    assert names(tmp_path) == ["checkpoint-000100"]
    assert load_json(tmp_path / "checkpoint-000100" / "state.json")["text"] == "second"


@pytest.mark.parametrize("damage", ["cut", "lost", "no manifest", "bad manifest", "odd manifest"])
def test_damaged_folders_are_passed_over_and_explained(tmp_path, damage):
    good, bad = write_checkpoint(tmp_path, 100), write_checkpoint(tmp_path, 200)
    if damage == "cut":
        (bad / "policy.safetensors").write_bytes((bad / "policy.safetensors").read_bytes()[:-1])
    elif damage == "lost":
        (bad / "state.json").unlink()
    elif damage == "no manifest":
        (bad / "manifest.json").unlink()
    else:
        (bad / "manifest.json").write_text("{" if damage == "bad manifest" else '{"step": 1, "files": 3}')
    assert latest_checkpoint(tmp_path) == good
    with pytest.raises(ValueError, match=r"checkpoint-000200.*(missing|bytes instead|manifest)"):
        check_checkpoint(bad)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="checkpoint-000300 does not exist"):
        check_checkpoint(tmp_path / "checkpoint-000300")


def test_prune_keeps_the_newest_and_removes_leftovers_of_kills(tmp_path):
    for step in (100, 200, 300):
        write_checkpoint(tmp_path, step)
    (tmp_path / ".checkpoint-000400.partial").mkdir()
    (tmp_path / ".checkpoint-000050.removed").mkdir()
    (tmp_path / "checkpoint-000500").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    prune_checkpoints(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-000200", "checkpoint-000300", "checkpoint-000500", "metrics.jsonl"]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-000300"


def test_prune_refuses_to_remove_everything(tmp_path):
    with pytest.raises(ValueError, match="limit is 0"):
        prune_checkpoints(tmp_path, 0)


@pytest.mark.parametrize("killed_at", [1, 2])
def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path, monkeypatch, killed_at):
    write_checkpoint(tmp_path, 100, "first")
    renames = []
    real = Path.rename

    def rename(self, target):
        renames.append(target)
        if len(renames) == killed_at:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(folders_module.shutil, "rmtree", lambda *args, **kwargs: None)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, 100, "second")
    monkeypatch.undo()
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert load_json(found / "state.json")["text"] == "first"
    write_checkpoint(tmp_path, 200)
    prune_checkpoints(tmp_path, 5)
    write_checkpoint(tmp_path, 100, "third")
    assert names(tmp_path) == ["checkpoint-000100", "checkpoint-000200"]
    assert load_json(tmp_path / "checkpoint-000100" / "state.json")["text"] == "third"


SAVES_FOREVER = """
import sys, torch
from pathlib import Path
from lucidnft.checkpoint import checkpoint_folder, prune_checkpoints, save_json, save_tensors
run_dir = Path(sys.argv[1])
step = int(sys.argv[2])
while True:
    step += 1
    with checkpoint_folder(run_dir, step) as folder:
        for name in "abc":
            tensors = {"x": torch.full((20_000,), float(step))}
            save_tensors(folder / f"{name}.safetensors", tensors, {"step": step})
        save_json(folder / "state.json", {"step": step})
    prune_checkpoints(run_dir, 2)
    print(step, flush=True)
"""


def test_sigkill_at_any_moment_leaves_a_complete_latest_checkpoint(tmp_path):
    from lucidnft.checkpoint import load_tensors

    step = 0
    for delay in (0.0, 0.005, 0.021):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVES_FOREVER, str(tmp_path), str(step)], stdout=subprocess.PIPE, text=True
        )
        announced = step
        for _ in range(3):
            announced = int(process.stdout.readline())
        time.sleep(delay)
        process.kill()
        assert process.wait(timeout=60) == -9
        process.stdout.close()
        found = latest_checkpoint(tmp_path)
        assert found is not None
        step = check_checkpoint(found)
        assert step >= announced
        for name in "abc":
            tensors, header = load_tensors(found / f"{name}.safetensors")
            assert header == {"step": step}
            assert torch.equal(tensors["x"], torch.full((20_000,), float(step)))


FULL_DISK = """
import resource, sys, torch
from lucidnft.checkpoint import checkpoint_folder, save_json, save_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    with checkpoint_folder(sys.argv[1], 2) as folder:
        save_json(folder / "state.json", {})
        save_tensors(folder / "policy.safetensors", {"a": torch.ones(100_000)}, {})
except OSError as error:
    print(error)
    sys.exit(7)
"""


def test_a_full_disk_leaves_the_last_good_checkpoint_and_nothing_else(tmp_path):
    good = write_checkpoint(tmp_path, 1)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 7, done.stderr
    assert "policy.safetensors" in done.stdout
    assert names(tmp_path) == ["checkpoint-000001"]
    assert latest_checkpoint(tmp_path) == good


def test_a_run_folder_that_cannot_be_made_is_a_write_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointWriteError, match="cannot write"), checkpoint_folder(tmp_path / "file", 1):
        pass
    shutil.rmtree(tmp_path, ignore_errors=True)


def test_a_negative_step_is_refused(tmp_path):
    with pytest.raises(ValueError, match="step is -1"), checkpoint_folder(tmp_path, -1):
        pass
