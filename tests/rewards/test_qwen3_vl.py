"""The Qwen3-VL embedder on a tiny random model of the real classes: transformers' own processor is the reference."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from lucidnft.images import tensor_to_uint8
from lucidnft.rewards.qwen3_vl import (
    MAX_PIXELS,
    MIN_PIXELS,
    Qwen3VLEmbedder,
    Qwen3VLEmbedderConfig,
    embedded_size,
)
from tests.rewards.small_qwen3_vl import WIDTH, save_small_checkpoint

SIZES = ((128, 128), (96, 64), (64, 160), (200, 300), (40, 500), (20, 30))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_checkpoint(tmp_path_factory.mktemp("qwen3_vl"))


@pytest.fixture(scope="module")
def embedder(checkpoint: Path) -> Qwen3VLEmbedder:
    return Qwen3VLEmbedderConfig(model_name_or_path=str(checkpoint), dtype="float32").build()


def image(height: int, width: int) -> Tensor:
    """(3, H, W) of levels of 8 bits."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    coarse = torch.rand((1, 3, 5, 5), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0]
    return tensor_to_uint8(smooth).float() / 255


def reference(checkpoint: Path, pixels: Tensor) -> Tensor:
    """(D,) by transformers alone: a PIL image through processor, template and model."""
    processor, model = AutoProcessor.from_pretrained(checkpoint), AutoModel.from_pretrained(checkpoint).eval()
    size = embedded_size(pixels.shape[1], pixels.shape[2])
    picture = Image.fromarray(tensor_to_uint8(pixels).permute(1, 2, 0).numpy())
    picture = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "Represent the user's input."}]},
        {"role": "user", "content": [{"type": "image", "image": picture}]},
    ]
    text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    with torch.no_grad():
        return model(**processor(text=[text], images=[picture], return_tensors="pt")).last_hidden_state[0, -1]


@pytest.mark.parametrize("size", SIZES)
def test_embeddings_are_those_of_transformers_own_processor(checkpoint, embedder, size):
    pixels = image(*size)
    found = embedder.embed(pixels[None])
    assert found.shape == (1, 1, WIDTH) and found.dtype == torch.float32
    torch.testing.assert_close(found[0, 0], reference(checkpoint, pixels), rtol=1e-4, atol=1e-5)


def test_a_batch_of_unequal_sizes_gives_what_one_by_one_gives(embedder):
    images = [image(*size) for size in SIZES]
    together = embedder.embed_each(images)
    alone = torch.cat([embedder.embed(x[None]) for x in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    directions = torch.nn.functional.normalize(alone[:, 0], dim=-1)
    assert float((directions @ directions.T).triu(1).max()) < 0.999  # they do depend on the image


@pytest.mark.parametrize(
    ("size", "tokens"),
    [((128, 128), 16), ((96, 64), 6), ((200, 300), 54), ((40, 500), 16), ((512, 512), 256), ((4, 4), 4)],
)
def test_the_chat_holds_one_token_for_every_32_px_square(checkpoint, embedder, size, tokens):
    grid = embedder.patches(image(*size))[1]
    ids = embedder.token_ids(grid)
    assert int((ids == embedder.config.image_token_id).sum()) == tokens
    assert AutoProcessor.from_pretrained(checkpoint).tokenizer.decode(ids) == (
        "<|im_start|>system\nRepresent the user's input.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * tokens
        + "<|vision_end|><|im_end|>\n<|im_start|>assistant\n"
    )


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_sizes_are_multiples_of_32_within_the_bounds_and_near_the_own(height, width):
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ValueError, match=f"{height}x{width} px is too narrow"):
            embedded_size(height, width)
        return
    rows, columns = embedded_size(height, width)
    assert rows % 32 == columns % 32 == 0
    assert rows * columns >= MIN_PIXELS
    narrow = max(height, width) > 40 * min(height, width)  # a side of 32 px may then be all there is room for
    assert rows * columns <= MAX_PIXELS or narrow
    if MIN_PIXELS <= height * width <= MAX_PIXELS and min(height, width) >= 32 and not narrow:
        assert math.isclose(rows, height, abs_tol=32) and math.isclose(columns, width, abs_tol=32)


def test_half_precision_points_the_same_way(checkpoint, embedder):
    half = Qwen3VLEmbedderConfig(model_name_or_path=str(checkpoint), attention="eager").build()
    assert next(half.model.parameters()).dtype == torch.bfloat16
    images = image(96, 64)[None]
    found, expected = half.embed(images), embedder.embed(images)
    assert found.dtype == torch.float32
    assert float(torch.cosine_similarity(found, expected, dim=-1)) > 0.99


def test_settings_reach_the_embedding(checkpoint, embedder):
    where = {"model_name_or_path": str(checkpoint), "dtype": "float32"}
    small = Qwen3VLEmbedderConfig(**where, max_pixels=64 * 64).build()
    assert small.patches(image(128, 128))[1] == (1, 4, 4)
    other = Qwen3VLEmbedderConfig(**where, instruction="Describe.").build()
    images = image(64, 64)[None]
    assert not torch.allclose(other.embed(images), embedder.embed(images), atol=1e-3)


def rewritten(checkpoint: Path, folder: Path, **settings: object) -> str:
    """A copy of the checkpoint with other settings in its config.json."""
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **settings}))
    return str(folder)


def test_a_text_only_checkpoint_is_refused(checkpoint, tmp_path):
    where = rewritten(checkpoint, tmp_path / "text", model_type="qwen3")
    with pytest.raises(ValueError, match=r"text is a model of type 'qwen3', expected 'qwen3_vl'"):
        Qwen3VLEmbedderConfig(model_name_or_path=where).build()


def test_a_checkpoint_for_generation_is_refused_unless_one_insists(checkpoint, tmp_path):
    where = rewritten(checkpoint, tmp_path / "chat", architectures=["Qwen3VLForConditionalGeneration"])
    with pytest.raises(
        ValueError, match=r"chat looks like a checkpoint for writing text .*ConditionalGeneration"
    ):
        Qwen3VLEmbedderConfig(model_name_or_path=where).build()
    Qwen3VLEmbedderConfig(model_name_or_path=where, require_embedding_checkpoint=False).build()
    (tmp_path / "chat/modules.json").write_text("[]")  # as the published embedding models have
    Qwen3VLEmbedderConfig(model_name_or_path=where).build()


def test_missing_weights_are_named(checkpoint, tmp_path):
    values = json.loads((checkpoint / "config.json").read_text())
    deeper = {**values["text_config"], "num_hidden_layers": 3}
    deeper.pop("layer_types", None)
    where = rewritten(checkpoint, tmp_path / "deep", text_config=deeper)
    with pytest.raises(ValueError, match=r"lacks \d+ weights of Qwen3-VL \(.*layers\.2"):
        Qwen3VLEmbedderConfig(model_name_or_path=where).build()


def test_an_embedding_that_is_not_finite_names_the_image(checkpoint):
    broken = Qwen3VLEmbedderConfig(model_name_or_path=str(checkpoint), dtype="float32").build()
    with torch.no_grad():
        broken.model.language_model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"not finite for images \[0, 1\] of shapes \[\(3, 64, 64\)"):
        broken.embed(torch.rand(2, 3, 64, 64))
