"""What a run leaves behind, loaded again: files, folders, and everything that does not fit."""

from typing import get_args

import pytest
import torch

from lucidnft.backbones.adapters import LoraSettings
from lucidnft.backbones.tiny import TinyBackbone, TinyBackboneConfig
from lucidnft.checkpoint import checkpoint_folder, load_header, load_tensors, save_tensors
from lucidnft.config import Model
from lucidnft.config_validation import tags_of
from lucidnft.inference import load_policy, restore
from lucidnft.inference.checkpoints import BACKBONE_CONFIGS, POLICY_FORMAT
from lucidnft.policy import Policy, Role
from tests.small_backbone import SMALL, moved_policy, small_backbone

LORA = {"lora_rank": 2, "lora_alpha": 4}


@pytest.fixture
def base_file(tmp_path):
    path = tmp_path / "base.safetensors"
    small_backbone().save_pretrained(path)
    return path


@pytest.fixture
def run_dir(tmp_path, base_file):
    """A run folder with checkpoints of steps 1 and 2, as the trainer writes them."""
    run = tmp_path / "run"
    policy = moved_policy(TinyBackbone.from_pretrained(base_file))
    for step in (1, 2):
        with torch.no_grad():
            for parameter in policy.parameters.values():
                parameter.add_(0.01)
        write_checkpoint(run, policy, base_file, step)
    return run


def write_checkpoint(run, policy, base_file, step, **header):
    section = TinyBackboneConfig(model_name_or_path=str(base_file), **LORA)
    header = {
        "format": POLICY_FORMAT,
        "backbone": section.model_dump(mode="json"),
        "base_fingerprint": policy.backbone.fingerprint,
        "step": step,
        "config": {"seed": 0},
        **header,
    }
    with checkpoint_folder(run, step) as folder:
        save_tensors(folder / "policy.safetensors", policy.state(Role.CURRENT), header)
    return run / f"checkpoint-{step:06d}" / "policy.safetensors"


def rewrite(path, *, tensors=None, **changes):
    """Write a checkpoint file again with another header or other tensors."""
    stored, header = load_tensors(path)
    kept = {k: v for k, v in {**header, **changes}.items() if v is not None}
    save_tensors(path, tensors(stored) if tensors else stored, kept)


def test_file_checkpoint_folder_and_run_folder_name_the_same_policy(run_dir):
    last = run_dir / "checkpoint-000002"
    stored, _ = load_tensors(last / "policy.safetensors")
    for path in (last / "policy.safetensors", last, run_dir, str(run_dir)):
        policy = load_policy(path)
        assert isinstance(policy, Policy)
        state = policy.state(Role.CURRENT)
        assert state.keys() == stored.keys() and all(torch.equal(state[n], stored[n]) for n in stored)


def test_a_loaded_policy_restores_like_the_trained_one(run_dir, base_file):
    trained = moved_policy(TinyBackbone.from_pretrained(base_file))
    with torch.no_grad():
        for parameter in trained.parameters.values():
            parameter.add_(0.01).add_(0.01)
    lr = torch.rand(1, 3, 4, 4)
    expected = restore(trained, lr, num_inference_steps=2)
    assert torch.equal(restore(load_policy(run_dir), lr, num_inference_steps=2), expected)
    assert not torch.equal(restore(load_policy(base_file), lr, num_inference_steps=2), expected)


def test_a_run_folder_passes_over_half_written_checkpoints(run_dir):
    (run_dir / "checkpoint-000002" / "manifest.json").unlink()
    stored, _ = load_tensors(run_dir / "checkpoint-000001" / "policy.safetensors")
    state = load_policy(run_dir).state(Role.CURRENT)
    assert all(torch.equal(state[n], stored[n]) for n in stored)


def test_the_shippable_file_alone_in_a_folder_is_enough(run_dir, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    (run_dir / "checkpoint-000002" / "policy.safetensors").rename(alone / "policy.safetensors")
    assert isinstance(load_policy(alone), Policy)


def test_base_weights_load_as_a_backbone(base_file, tmp_path):
    assert load_policy(base_file).fingerprint == small_backbone().fingerprint
    with checkpoint_folder(tmp_path / "supervised", 5) as folder:
        small_backbone().save_pretrained(folder / "weights.safetensors")
    assert load_policy(tmp_path / "supervised").fingerprint == small_backbone().fingerprint


def test_a_base_that_moved_is_found_where_it_is_said_to_be(run_dir, base_file, tmp_path):
    moved = base_file.rename(tmp_path / "moved.safetensors")
    with pytest.raises(
        FileNotFoundError, match=r"needs its base weights.*does not exist.*model_name_or_path"
    ):
        load_policy(run_dir)
    assert isinstance(load_policy(run_dir, model_name_or_path=moved), Policy)


def test_another_base_is_refused_with_both_hashes(run_dir, tmp_path):
    other = tmp_path / "other.safetensors"
    backbone = small_backbone(seed=5)
    backbone.save_pretrained(other)
    own = small_backbone().fingerprint
    with pytest.raises(
        ValueError, match=rf"trained on base weights {own}.*{backbone.fingerprint}.*give the base"
    ):
        load_policy(run_dir, model_name_or_path=other)


def test_a_base_drawn_from_the_seed_is_drawn_again(tmp_path):
    config = TinyBackboneConfig(model_name_or_path=None, architecture=SMALL, **LORA)
    policy = Policy(config.build(seed=9), config, seed=9)
    path = write_checkpoint(
        tmp_path / "fresh", policy, None, 1, backbone=config.model_dump(mode="json"), config={"seed": 9}
    )
    assert load_policy(path).backbone.fingerprint == policy.backbone.fingerprint
    rewrite(path, config={"seed": 8})
    with pytest.raises(ValueError, match="trained on base weights"):
        load_policy(path)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist.*'base'"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match=r"no checkpoint in .*neither policy\.safetensors nor weights\.safetensors"
    ):
        load_policy(tmp_path)


def test_another_format_is_refused(run_dir, tmp_path):
    path = run_dir / "checkpoint-000002" / "policy.safetensors"
    rewrite(path, format="lucidnft.quality_net.1")
    with pytest.raises(ValueError, match=r"format 'lucidnft\.quality_net\.1'.*policy\.safetensors"):
        load_policy(path)
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_policy(junk)


def test_a_missing_or_mis_shaped_tensor_is_named(run_dir):
    path = run_dir / "checkpoint-000002" / "policy.safetensors"
    first = sorted(load_tensors(path)[0])[0]
    rewrite(path, tensors=lambda t: {n: v for n, v in t.items() if n != first})
    with pytest.raises(ValueError, match=f"1 missing: {first}"):
        load_policy(path)


def test_another_rank_than_the_header_says_is_refused(run_dir, base_file):
    policy = Policy(TinyBackbone.from_pretrained(base_file), LoraSettings(lora_rank=3), seed=0)
    path = write_checkpoint(run_dir, policy, base_file, 3)
    with pytest.raises(ValueError, match="of another shape"):
        load_policy(path)


def test_another_backbone_is_refused(run_dir):
    path = run_dir / "checkpoint-000002" / "policy.safetensors"
    section = load_header(path)["backbone"]
    rewrite(path, backbone={**section, "type": "lucidflux9"})
    with pytest.raises(
        ValueError, match="adapter for backbone 'lucidflux9'; this version knows tiny, lucidflux, dit4sr"
    ):
        load_policy(path)
    rewrite(path, backbone={**section, "lora_rnk": 2})
    with pytest.raises(ValueError, match="cannot read: lora_rnk"):
        load_policy(path)


def test_a_header_without_its_base_is_refused(run_dir):
    path = run_dir / "checkpoint-000002" / "policy.safetensors"
    rewrite(path, base_fingerprint=None)
    with pytest.raises(ValueError, match="does not say base_fingerprint"):
        load_policy(path)


def test_base_weights_take_no_second_base(base_file):
    with pytest.raises(ValueError, match="leave model_name_or_path out"):
        load_policy(base_file, model_name_or_path=base_file)


def test_the_base_that_ships_takes_no_second_base(base_file):
    with pytest.raises(
        ValueError, match=r"model_name_or_path is .*base\.safetensors.*give that file as --checkpoint"
    ):
        load_policy("base", model_name_or_path=base_file)


def test_every_backbone_a_run_may_have_can_be_loaded():
    union = get_args(Model)[0]  # what `model:` accepts in a run file
    assert set(BACKBONE_CONFIGS.values()) == set(get_args(union) or (union,))
    assert tags_of(BACKBONE_CONFIGS.values()) == BACKBONE_CONFIGS
