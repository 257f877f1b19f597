"""CLIP rewards on a small random open_clip model, built from a config without any download."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lucidnft.records import ImageBatch
from lucidnft.rewards import ClipSimilarity, ClipText, RewardSuite, build_reward


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
        text_cfg={"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    ).eval()


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return open_clip.SimpleTokenizer(context_length=16)


def test_the_same_image_scores_one_and_another_less(network: nn.Module, photographs: Tensor) -> None:
    reward = ClipSimilarity(network, against="hr")
    assert reward(photographs, hr=photographs).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    assert (reward(photographs, hr=photographs.roll(1, dims=0)) < 0.9999).all()


def test_lr_and_sr_are_brought_to_the_model_size(network: nn.Module, photographs: Tensor) -> None:
    lr = F.interpolate(photographs, size=(48, 48), mode="bicubic", antialias=True).clamp(0, 1)
    scores = ClipSimilarity(network)(photographs, lr=lr)
    assert (scores > 0.99).all()  # both become the same 32 x 32 picture


def test_preprocessing_is_the_models_own(network: nn.Module) -> None:
    images = torch.rand(2, 3, 32, 32)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)
    expected = F.normalize(network.encode_image((images - mean) / std), dim=-1)
    assert torch.allclose(ClipSimilarity(network).embed_images(images), expected, atol=1e-5)


def test_text_scores_are_cosines_with_each_images_own_prompt(
    network: nn.Module, tokenizer: object, photographs: Tensor
) -> None:
    reward = ClipText(network, tokenizer)
    assert reward.card.needs == {"prompt"}
    one, two = reward(photographs[:2], prompt="a cat"), reward(photographs[:2], prompt=["a cat", "a face"])
    assert one[0] == two[0] and one[1] != two[1]
    fixed = ClipText(network, tokenizer, prompt="a cat")
    assert fixed.card.needs == frozenset()
    assert torch.allclose(fixed(photographs[:2]), one)


def test_lr_features_are_computed_once_per_group(network: nn.Module, photographs: Tensor) -> None:
    reward = ClipSimilarity(network)
    counted = []
    plain = reward.embed_images
    reward.embed_images = lambda images: counted.append(tuple(images.shape)) or plain(images)  # type: ignore
    batch = ImageBatch(lr=torch.rand(2, 3, 16, 16), keys=("a", "b"), group_ids=(0, 1))
    RewardSuite({"clip": reward}).score(torch.rand(2, 3, 3, 64, 64), batch)
    assert counted == [(2, 3, 16, 16), (6, 3, 64, 64)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": "clip_similarity", "model": "ViT-Z-99"}, "no model 'ViT-Z-99'"),
        ({"type": "clip_similarity", "pretrained": "nobody"}, "no weights 'nobody'"),
        ({"type": "clip_text", "pretrained": ""}, "needs 'pretrained'"),
        ({"type": "clip_similarity", "against": "sr"}, "against"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_reward(settings)


def test_unreachable_weights_say_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="HF_HOME"):
        build_reward("clip_similarity")


def test_a_missing_open_clip_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=r"lucidnft\[clip\]"):
        build_reward("clip_similarity")


def test_missing_references_are_refused(network: nn.Module, tokenizer: object) -> None:
    with pytest.raises(ValueError, match="needs lr"):
        ClipSimilarity(network)(torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match="needs prompt"):
        ClipText(network, tokenizer)(torch.rand(1, 3, 32, 32))
