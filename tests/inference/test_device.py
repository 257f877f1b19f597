"""Names of devices, and what happens without a GPU."""

import pytest
import torch

from lucidnft.inference.device import choose_device, move_to
from tests.small_backbone import moved_policy


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "cpu:0", ""])
def test_unknown_names_are_refused(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="expected auto, cpu, cuda or cuda:<index>"):
        choose_device(name)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="torch sees 0 CUDA devices; use --device cpu or --device auto"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match="torch sees 1"):
        choose_device("cuda:1")


def test_auto_takes_what_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


def test_base_and_adapters_move_together(backbone):
    policy = moved_policy(backbone)
    assert move_to(policy, torch.device("meta")) is policy
    assert all(p.device.type == "meta" for p in backbone.module.parameters())
    assert move_to(backbone, torch.device("meta")) is backbone
