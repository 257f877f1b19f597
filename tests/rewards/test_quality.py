"""QualityNet: the shipped weights order damaged photographs; the file format is strict."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lucidnft.checkpoint import load_header, load_tensors, save_tensors
from lucidnft.data.defects import DEFECT_NAMES, apply_defect, draw_defect
from lucidnft.filters import gaussian_blur
from lucidnft.images import resize
from lucidnft.rewards import QualityNet
from lucidnft.rewards.quality import QualityArchitecture, QualityNetwork, save_quality_network
from lucidnft.rewards.weights import weight_file
from lucidnft.rng import numpy_generator_for

SMALL = QualityArchitecture(widths=(8, 8, 8), depths=(1, 1, 1))


@pytest.fixture(scope="module")
def shipped() -> QualityNet:
    return QualityNet.from_pretrained("tiny")


@pytest.mark.parametrize("name", DEFECT_NAMES)
def test_photographs_outscore_their_damaged_versions_by_severity(
    name: str, shipped: QualityNet, photographs: Tensor
) -> None:
    """Photographs and draws that the network never saw; means over four of them must fall with severity."""
    means = []
    for severity in (0.0, 0.25, 0.5, 0.9):
        versions = [
            apply_defect(
                image, draw_defect(numpy_generator_for(7, name, i), name), severity, donor=photographs[i - 1]
            )
            for i, image in enumerate(photographs)
        ]
        means.append(float(shipped(torch.stack(versions)).mean()))
    # Known limits of the shipped weights, said in their card: mild painting passes, melting is not graded.
    assert means[0] > max(means[2:] if name == "painting" else means[1:]), means
    if name != "melting":
        assert means[1] > means[2] > means[3], means


def test_the_usual_ways_to_cheat_lose(shipped: QualityNet, photographs: Tensor) -> None:
    clean = shipped(photographs)
    noise = torch.randn(photographs.shape, generator=torch.Generator().manual_seed(0))
    detail = photographs - gaussian_blur(photographs, 1.0)
    cheats = {
        "oversharpened": photographs + 2.0 * detail,
        "noise": photographs + 0.05 * noise,
        "coloured noise": photographs + 0.05 * gaussian_blur(noise, 1.0) / 0.28,
        "blurred": gaussian_blur(photographs, 2.0),
        "enlarged": resize(resize(photographs, (48, 48)), (192, 192)),
        "sharpened enlargement": resize(resize(photographs, (48, 48)), (192, 192)) * 2
        - gaussian_blur(resize(resize(photographs, (48, 48)), (192, 192)), 3.0),
    }
    for name, images in cheats.items():
        assert shipped(images.clamp(0, 1)).mean() < clean.mean() - 0.02, name  # on average: see the card


def test_a_pattern_that_nobody_sees_is_not_paid_for(
    shipped: QualityNet, photographs: Tensor, invisible_patterns: dict[str, Tensor]
) -> None:
    enlarged = resize(resize(photographs, (48, 48)), (192, 192)).clamp(0, 1)
    for images in (photographs, enlarged):
        before = shipped(images).mean()
        for name, pattern in invisible_patterns.items():
            for amplitude in (-0.004, 0.004):  # one step of 255
                gain = shipped((images + amplitude * pattern).clamp(0, 1)).mean() - before
                assert gain < 0.06, (name, amplitude, float(gain))


def test_scores_lie_in_the_unit_interval_and_are_not_saturated(
    shipped: QualityNet, photographs: Tensor
) -> None:
    scores = shipped(torch.cat((photographs, torch.rand(2, 3, 192, 192))))
    assert ((scores > 0) & (scores < 1)).all()
    assert (scores[:4] > 0.6).all() and (scores[:4] < 0.99).all() and (scores[4:] < 0.4).all()


def test_local_damage_shows_in_the_map_where_it_is(shipped: QualityNet, photographs: Tensor) -> None:
    damaged = photographs.clone()
    noise = torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    damaged[:, :, :96, :96] = (damaged[:, :, :96, :96] + 0.1 * noise).clamp(0, 1)
    drop = shipped.quality_map(photographs) - shipped.quality_map(damaged)
    assert drop.shape == (4, 1, 24, 24)
    assert drop[:, :, :10, :10].mean() > 0.2
    assert drop[:, :, 16:, 16:].abs().max() < 3e-3
    right = photographs.clone()
    right[:, :, :96, -96:] = damaged[:, :, :96, :96]
    on_the_right = (shipped.score_map(photographs) - shipped.score_map(right)).mean(dim=0)
    assert on_the_right[:10, -10:].mean() > 5 * on_the_right[-10:, :10].abs().max()
    assert torch.allclose(shipped.score_map(right).mean(dim=(1, 2)), shipped.score(right))


def test_the_reward_is_differentiable_and_a_step_along_the_gradient_raises_it(shipped: QualityNet) -> None:
    sr = torch.rand(1, 3, 64, 64).requires_grad_()
    before = shipped.score(sr)
    before.sum().backward()
    assert sr.grad is not None
    step = 0.01 * sr.grad / sr.grad.abs().max()
    assert shipped.score((sr + step).detach()) > before
    assert all(not p.requires_grad for p in shipped.network.parameters())


@pytest.mark.parametrize("size", [(32, 32), (33, 70), (47, 129)])
def test_any_size_works_and_a_batch_scores_as_its_images(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    reward = QualityNet(QualityNetwork(SMALL))
    images = torch.rand(3, 3, *size)
    scores = reward(images)
    assert reward.quality_map(images).shape == (3, 1, -(-size[0] // 8), -(-size[1] // 8))
    assert torch.allclose(scores, torch.cat([reward(image[None]) for image in images]), atol=1e-6)


def test_too_small_images_are_refused(shipped: QualityNet) -> None:
    with pytest.raises(ValueError, match="at least 32 px"):
        shipped(torch.rand(1, 3, 31, 64))


def test_saving_and_loading_keeps_scores_to_half_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = QualityNetwork(SMALL)
    save_quality_network(network, tmp_path / "q.safetensors", metrics={"accuracy": 0.5})
    loaded = QualityNet.from_pretrained(tmp_path / "q.safetensors")
    images = torch.rand(2, 3, 64, 64)
    assert torch.allclose(loaded(images), QualityNet(network)(images), atol=2e-3)
    assert load_header(tmp_path / "q.safetensors")["metrics"] == {"accuracy": 0.5}


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.safetensors"
    save_quality_network(QualityNetwork(SMALL), path)
    tensors, header = load_tensors(path)
    broken = dict(tensors)
    broken["extra"] = broken.pop("stem.weight")
    save_tensors(tmp_path / "keys.safetensors", broken, header)
    with pytest.raises(ValueError, match=r"1 missing: stem.weight.*1 unexpected: extra"):
        QualityNet.from_pretrained(tmp_path / "keys.safetensors")
    save_tensors(tmp_path / "type.safetensors", tensors, {**header, "type": "adapter"})
    with pytest.raises(ValueError, match="type 'adapter', expected 'quality_net'"):
        QualityNet.from_pretrained(tmp_path / "type.safetensors")
    save_tensors(tmp_path / "sizes.safetensors", tensors, {**header, "architecture": {"widths": [8]}})
    with pytest.raises(ValueError, match="architecture"):
        QualityNet.from_pretrained(tmp_path / "sizes.safetensors")
    with pytest.raises(ValueError, match="shipped names: tiny"):
        QualityNet.from_pretrained("large")


def test_the_shipped_file_is_small_and_has_its_card() -> None:
    path = weight_file("tiny", {"tiny": "quality_net.safetensors"}, "quality_net")
    assert path.stat().st_size < 3_000_000
    card = path.with_suffix(".md").read_text()
    for word in ("BSD100", "Urban100", "Command", "Limits"):
        assert word in card
    assert load_header(path)["metrics"]["accuracy"] > 0.5
