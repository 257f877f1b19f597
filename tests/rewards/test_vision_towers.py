"""Vision towers as embedders, on tiny random models of the real classes, against the libraries' own calls."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
import transformers
from torch.nn import functional as F

from lucidnft.rewards import LucidConsistency, build_reward
from lucidnft.rewards.vision_towers import HfVisionEmbedderConfig, OpenClipEmbedder

VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {**VISION, "vocab_size": 32, "max_position_embeddings": 8}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def save(folder: Path, config: transformers.PreTrainedConfig, processor: object) -> str:
    """A folder as one downloads it."""
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def dinov2(folder: Path) -> str:
    config = transformers.Dinov2Config(**VISION, mlp_ratio=2, image_size=42, patch_size=14)
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, image_mean=MEAN, image_std=STD
    )
    return save(folder, config, processor)


def siglip(folder: Path) -> str:
    config = transformers.SiglipConfig(
        text_config=TEXT, vision_config={**VISION, "image_size": 32, "patch_size": 16}
    )
    size = {"height": 32, "width": 32}
    return save(folder, config, transformers.SiglipImageProcessor(size=size, image_mean=MEAN, image_std=STD))


@pytest.mark.parametrize(("make", "side"), [(dinov2, 28), (siglip, 32)])
def test_embeddings_are_the_models_pooled_outputs(tmp_path, make, side):
    where = make(tmp_path)
    embedder = HfVisionEmbedderConfig(model_name_or_path=where).build()
    assert embedder.size == (side, side) and embedder.dimension == 16
    images = torch.rand(3, 3, side, side)
    pixels = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    model = transformers.AutoModel.from_pretrained(where).eval()
    with torch.no_grad():
        vision = model.vision_model if hasattr(model, "vision_model") else model
        expected = vision(pixel_values=pixels).pooler_output
    torch.testing.assert_close(embedder.embed(images)[:, 0], expected)
    assert float(expected.std(dim=0).max()) > 1e-3
    larger = F.interpolate(images, scale_factor=3, mode="nearest")
    close = F.cosine_similarity(embedder.embed(larger), embedder.embed(images), dim=-1)
    assert embedder.embed(larger).shape == (3, 1, 16) and float(close.min()) > 0.9


def test_half_precision_gives_float32(tmp_path):
    where = dinov2(tmp_path)
    half, full = (
        HfVisionEmbedderConfig(model_name_or_path=where, dtype=d).build() for d in ("bfloat16", "float32")
    )
    images = torch.rand(2, 3, 40, 50)
    assert half.embed(images).dtype == torch.float32
    assert float(F.cosine_similarity(half.embed(images), full.embed(images), dim=-1).min()) > 0.99


def test_a_reward_takes_any_tower(tmp_path):
    settings = {"type": "hf_vision", "model_name_or_path": dinov2(tmp_path)}
    reward = build_reward({"type": "lucid_consistency", "embedder": settings, "head": None})
    assert isinstance(reward, LucidConsistency) and not reward.scores_places
    sr, lr = torch.rand(2, 3, 64, 48), torch.rand(2, 3, 16, 12)
    z = [reward.embedder.embed(images)[:, 0] for images in (sr, lr)]
    torch.testing.assert_close(reward(sr, lr=lr), F.cosine_similarity(*z))


def test_a_model_without_a_vision_side_is_refused(tmp_path):
    transformers.BertConfig(**TEXT).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a model of type 'bert', which sees no images"):
        HfVisionEmbedderConfig(model_name_or_path=str(tmp_path)).build()


def test_missing_weights_are_named(tmp_path):
    where = dinov2(tmp_path)
    deeper = transformers.AutoConfig.from_pretrained(where)
    deeper.num_hidden_layers = 3
    deeper.save_pretrained(where)
    with pytest.raises(ValueError, match=r"lacks \d+ of the model's weights"):
        HfVisionEmbedderConfig(model_name_or_path=where).build()


def test_an_embedding_that_is_not_finite_names_the_image():
    network = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
        text_cfg={"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1},
    )
    embedder = OpenClipEmbedder(network)
    images = torch.rand(3, 3, 32, 32)
    images[1] = float("nan")
    with pytest.raises(ValueError, match=r"'open_clip' gave embeddings that are not finite for images \[1\]"):
        embedder.embed(images)
