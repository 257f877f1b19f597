"""Checkpoints that are restored before they are evaluated: every kind that loads, and whose results are reused when."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import lucidnft
from lucidnft.evaluation import evaluator, restoring, scoring
from lucidnft.evaluation.__main__ import main
from lucidnft.evaluation.evaluator import evaluate
from lucidnft.evaluation.metrics import MetricSpec, UnavailableMetric, build_metric
from lucidnft.evaluation.restoring import _run_digest, restore_method
from lucidnft.evaluation.settings import RestoreRun, parse_evaluation
from lucidnft.images import read_image, save_image, tensor_to_uint8
from lucidnft.inference import load_policy, restore
from lucidnft.inference.adapter_export import export_adapter
from lucidnft.rewards.lr_fidelity import LRFidelityConfig
from lucidnft.rewards.quality import QualityNetConfig
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
    found = [
        _run_digest(run, None, lr.iterdir(), loaded, torch.device(kind)) for kind in ("cpu", "cpu", "cuda")
    ]
    assert len(set(found)) == 2
    (settings,) = (tmp_path / "peft").rglob("adapter_config.json")
    settings.write_text(settings.read_text().replace('"lora_alpha": 3.0', '"lora_alpha": 4.0'))
    found.append(_run_digest(run, None, lr.iterdir(), loaded, torch.device("cpu")))
    monkeypatch.setattr(lucidnft, "__version__", "0.0.0")
    found.append(_run_digest(run, None, lr.iterdir(), loaded, torch.device("cpu")))
    monkeypatch.setattr(torch, "__version__", "0.0.0")
    found.append(_run_digest(run, None, lr.iterdir(), loaded, torch.device("cpu")))
    assert len(set(found)) == 5


def settings_of(lr: Path, runs: dict[str, Any]) -> dict[str, Any]:
    return {
        "benchmark": "Two", "protocol": "full_image", "lr": str(lr), "run": runs, "metrics": ["lr_fidelity"],
        "output_dir": str(lr.parent / "out"), "workers": 1, "device": "cpu",
    }  # fmt: skip


def test_a_bare_backbone_is_restored_as_a_run_file_says(lr, tmp_path):
    base = small_base(tmp_path, "dit4sr")
    file = tmp_path / "run.yaml"
    model = base.model_dump(mode="json")
    data = {"type": "lr_folder", "folder": str(lr)}
    run_file = {"task": "nft", "model": model, "data": data, "rewards": {"q": {"type": "quality_net"}}}
    file.write_text(json.dumps(run_file))
    run = {"checkpoint": "base", "base_config": str(file), "num_inference_steps": 1}
    config = settings_of(lr, {"bare": run, "tiny": {"num_inference_steps": 1}})
    (tmp_path / "eval.yaml").write_text(json.dumps(config))
    assert main([str(tmp_path / "eval.yaml")]) == 0
    bare, tiny = sorted((tmp_path / "out" / "restored").iterdir())
    images = [read_image(lr / f"{key}.png").rgb for key in "ab"]
    options = {"keys": ["a", "b"], "upscale": 4, "num_inference_steps": 1, "tile_size": "auto"}
    expected = tensor_to_uint8(restore(base.build(), torch.stack(images), **options))
    assert torch.equal(tensor_to_uint8(read_image(bare / "a.png").rgb), expected[0])
    assert not torch.equal(read_image(bare / "a.png").rgb, read_image(tiny / "a.png").rgb)
    settings = parse_evaluation(config, source="test")
    with pytest.raises(ValueError, match=r"run\.bare\.base_config is .* was not given; from Python: bases="):
        evaluate(settings, progress=False)
    changed = base.model_copy(update={"control_scale": 0.5})
    again = evaluate(settings, bases={"bare": changed}, progress=False)
    assert again.folders["bare"] != str(bare) and again.folders["tiny"] == str(tiny)
    both = {"model_name_or_path": "x", **run}
    with pytest.raises(ValueError, match="leave model_name_or_path out"):
        parse_evaluation({**config, "run": {"bare": both}}, source="test")


def test_a_checkpoint_that_is_not_there_is_told_before_another_is_restored(lr, tmp_path):
    runs = {"tiny": {"num_inference_steps": 1}, "gone": {"checkpoint": str(tmp_path / "gone")}}
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        evaluate(parse_evaluation(settings_of(lr, runs), source="test"), progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mistake", ["empty folder", "wrong suffix", "damaged cache", "one output for two"])
def test_what_is_wrong_is_told_before_anything_is_restored(mistake, lr, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluator, "restore_method", lambda *a, **k: pytest.fail("restored too early"))
    (tmp_path / "ours").mkdir()
    config = settings_of(lr, {"tiny": {"num_inference_steps": 1}}) | {
        "methods": {"ours": str(tmp_path / "ours")}
    }
    message = "no image file in"
    if mistake != "empty folder":
        ending = "_out" if mistake == "wrong suffix" else ""
        for stem in "ab":
            save_image(tmp_path / "ours" / f"{stem}{ending}.png", torch.rand(3, 16, 24))
        message = "give sr_suffix.ours=_out"
    if mistake == "damaged cache":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "cache.jsonl").write_text("damage\n")
        message = "cache.jsonl is damaged in line 1"
    if mistake == "one output for two":
        save_image(lr / "a.bmp", torch.rand(3, 4, 6))
        message = "would be written by several inputs"
    (tmp_path / "eval.yaml").write_text(json.dumps(config))
    assert main([str(tmp_path / "eval.yaml")]) == 2
    assert message in capsys.readouterr().err


def test_a_later_run_that_cannot_be_loaded_is_no_start_that_failed(lr, tmp_path, capsys):
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    runs = {"tiny": {"num_inference_steps": 1}, "junk": {"checkpoint": str(tmp_path / "junk.safetensors")}}
    (tmp_path / "eval.yaml").write_text(json.dumps(settings_of(lr, runs)))
    assert main([str(tmp_path / "eval.yaml")]) == 1
    assert "run.junk:" in capsys.readouterr().err
    (tmp_path / "eval.yaml").write_text(json.dumps(settings_of(lr, {"junk": runs["junk"]})))
    assert main([str(tmp_path / "eval.yaml")]) == 2


def test_a_checkpoint_computes_in_the_precision_that_the_command_chooses(lr, monkeypatch):
    """The images of a table are those that sample.py writes."""
    loaded = load_policy("base")
    loaded.autocast_dtype = torch.bfloat16
    monkeypatch.setattr(restoring, "load_policy", lambda *_, **__: loaded)
    restored("base", lr)
    assert loaded.autocast_dtype is None


def test_a_policy_is_gone_once_it_has_restored(lr, tmp_path, monkeypatch):
    loaded, emptied = [], []

    def load(*path, **options):
        policy = load_policy(*path, **options)
        policy.module.in_a_circle = [policy]
        loaded.append(weakref.ref(policy))
        return policy

    monkeypatch.setattr(restoring, "load_policy", load)
    monkeypatch.setattr(restoring, "choose_device", lambda *_, **__: torch.device("cuda"))
    monkeypatch.setattr(restoring, "move_to", lambda policy, device: policy)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(loaded[-1]()))
    gc.disable()
    try:
        restored("base", lr)
    finally:
        gc.enable()
    assert emptied == [None]


def test_metrics_are_described_for_a_gpu_without_touching_or_filling_it():
    spec = MetricSpec("lr_fidelity", LRFidelityConfig())
    on_gpu = scoring.LoadedMetrics([spec], "cuda:1")
    (info,) = on_gpu.describe()
    assert info.facts["device"] == "cuda" and info == build_metric(spec, "cuda:1").info()
    assert info.identity != build_metric(spec, "cpu").identity
    quality = MetricSpec("q", QualityNetConfig())  # which cannot be moved there
    with_network = scoring.LoadedMetrics([quality], "cuda:1")
    (info,) = with_network.describe()
    assert not isinstance(info, UnavailableMetric) and not with_network._built
