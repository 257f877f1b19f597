"""Checkpoints that are restored before they are evaluated: every kind that loads, and whose results are reused when."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lucidnft
from lucidnft.evaluation.restoring import _run_digest, restore_method
from lucidnft.evaluation.settings import RestoreRun
from lucidnft.images import save_image
from lucidnft.inference import load_policy
from lucidnft.inference.adapter_export import export_adapter
from tests.small_adapters import save_policy, scatter_, small_base, small_policy

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def lr(tmp_path):
    (tmp_path / "lr").mkdir()
    for index, stem in enumerate("ab"):
        image = torch.rand((3, 4, 6), generator=torch.Generator().manual_seed(index))
        save_image(tmp_path / "lr" / f"{stem}.png", image)
    return tmp_path / "lr"


def restored(checkpoint: Path, lr: Path, name: str = "ours") -> Path:
    run = RestoreRun(checkpoint=str(checkpoint), num_inference_steps=1)
    folder, failed = restore_method(name, run, lr, lr.parent, device="cpu", progress=False)
    assert failed == {} and [path.name for path in sorted(folder.iterdir())] == ["a.png", "b.png"]
    return folder


@pytest.mark.parametrize("form", ["file", "peft", "merged"])
def test_every_form_of_an_adapter_is_restored_and_told_from_others(form, lr, tmp_path):
    base = small_base(tmp_path, "tiny")
    policy = small_policy(base)

    def saved(name: str) -> Path:
        file = save_policy(tmp_path / f"{name}.safetensors", policy, base)
        if form == "file":
            return file
        export_adapter(file, tmp_path / name, merge=form == "merged")
        return tmp_path / name

    one = saved("one")
    first = restored(one, lr)
    times = {path.name: path.stat().st_mtime_ns for path in first.iterdir()}
    assert restored(one, lr) == first
    assert times == {path.name: path.stat().st_mtime_ns for path in first.iterdir()}
    scatter_(policy, seed=1)
    second = restored(saved("two"), lr)
    assert second != first and (second / "a.png").read_bytes() != (first / "a.png").read_bytes()


def test_another_version_device_or_scale_of_an_adapter_restores_anew(lr, tmp_path, monkeypatch):
    base = small_base(tmp_path, "tiny")
    file = save_policy(tmp_path / "policy.safetensors", small_policy(base), base)
    export_adapter(file, tmp_path / "peft")
    run, loaded = RestoreRun(checkpoint=str(tmp_path / "peft")), load_policy(tmp_path / "peft")
    found = [_run_digest(run, lr, loaded, torch.device(kind)) for kind in ("cpu", "cpu", "cuda")]
    assert len(set(found)) == 2
    (settings,) = (tmp_path / "peft").rglob("adapter_config.json")
    settings.write_text(settings.read_text().replace('"lora_alpha": 3.0', '"lora_alpha": 4.0'))
    found.append(_run_digest(run, lr, loaded, torch.device("cpu")))
    monkeypatch.setattr(lucidnft, "__version__", "0.0.0")
    found.append(_run_digest(run, lr, loaded, torch.device("cpu")))
    monkeypatch.setattr(torch, "__version__", "0.0.0")
    found.append(_run_digest(run, lr, loaded, torch.device("cpu")))
    assert len(set(found)) == 5
