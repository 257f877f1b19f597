"""The pre-restorer against the published equations, pixel window by pixel window."""

import pytest
import torch
from torch.nn import functional as F

from lucidnft.backbones.swinir import CHANNEL_MEANS, SwinIR, relative_position_index, shifted_mask
from tests.backbones.random_tensors import randomise_, uniforms

WINDOW, HEADS, WIDTH = 4, 2, 12


@pytest.fixture(scope="module")
def swinir():
    with torch.random.fork_rng(devices=[]):
        network = SwinIR(embed_dim=WIDTH, depths=(2, 1), num_heads=(HEADS, HEADS), window_size=WINDOW)
    return randomise_(network).eval()


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def conv(w, name, x):
    return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1)


def norm(w, name, x):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def attention(w, name, x, shift):
    """Each pixel attends to those that lie in its window once the image is cut at `shift` (window) steps."""
    _, height, width, channels = x.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    # windows of the shifted image do not wrap around: the strip before the first cut is one of its own
    window = torch.stack(
        [
            (rows - shift).div(WINDOW, rounding_mode="floor"),
            (columns - shift).div(WINDOW, rounding_mode="floor"),
        ]
    )
    same = (window[:, :, None] == window[:, None, :]).all(0)
    across = (rows[:, None] - rows + WINDOW - 1).clamp(0, 2 * WINDOW - 2)
    down = (columns[:, None] - columns + WINDOW - 1).clamp(0, 2 * WINDOW - 2)
    bias = w[f"{name}.relative_position_bias_table"][across * (2 * WINDOW - 1) + down]
    q, k, v = linear(w, f"{name}.qkv", x.flatten(1, 2)).chunk(3, dim=-1)
    heads = []
    for head in range(HEADS):
        part = slice(head * channels // HEADS, (head + 1) * channels // HEADS)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / (channels // HEADS) ** 0.5 + bias[..., head]
        heads.append(scores.masked_fill(~same, -torch.inf).softmax(-1) @ v[..., part])
    return linear(w, f"{name}.proj", torch.cat(heads, dim=-1)).unflatten(1, (height, width))


def restored(w, images):
    means = torch.tensor(CHANNEL_MEANS).view(1, 3, 1, 1)
    first = conv(w, "conv_first.1", F.pixel_unshuffle(images - means, 8))
    x = norm(w, "patch_embed.norm", first.permute(0, 2, 3, 1))
    for stage, depth in enumerate((2, 1)):
        before = x
        for block in range(depth):
            name = f"layers.{stage}.residual_group.blocks.{block}"
            shift = WINDOW // 2 if block % 2 else 0
            x = x + attention(w, f"{name}.attn", norm(w, f"{name}.norm1", x), shift)
            hidden = F.gelu(linear(w, f"{name}.mlp.fc1", norm(w, f"{name}.norm2", x)))
            x = x + linear(w, f"{name}.mlp.fc2", hidden)
        x = before + conv(w, f"layers.{stage}.conv", x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    x = first + conv(w, "conv_after_body", norm(w, "norm", x).permute(0, 3, 1, 2))
    x = F.leaky_relu(conv(w, "conv_before_upsample.0", x), 0.01)
    for name in ("conv_up1", "conv_up2", "conv_up3"):
        enlarged = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        x = F.leaky_relu(conv(w, name, enlarged), 0.2)
    return conv(w, "conv_last", F.leaky_relu(conv(w, "conv_hr", x), 0.2)) + means


@torch.no_grad()
def test_the_output_is_that_of_the_equations(swinir):
    images = uniforms(2, 3, 64, 96)
    expected = restored(swinir.state_dict(), images)
    torch.testing.assert_close(swinir(images), expected, rtol=1e-5, atol=1e-5)
    assert float(expected.std()) > 0.05


@torch.no_grad()
def test_any_size_is_continued_to_whole_windows_and_cropped(swinir):
    images = uniforms(1, 3, 40, 70)
    rows, columns = torch.arange(64).clamp(max=39), torch.arange(96).clamp(max=69)
    continued = images[:, :, rows][:, :, :, columns]
    torch.testing.assert_close(swinir(images), swinir(continued)[:, :, :40, :70])
    assert swinir(uniforms(1, 3, 3, 5)).shape == (1, 3, 3, 5)


def released(swinir, side=16):
    """As released files have it: with the index of each block and the masks of the shifted ones."""
    tensors = dict(swinir.state_dict())
    for stage, depth in enumerate((2, 1)):
        for block in range(depth):
            name = f"layers.{stage}.residual_group.blocks.{block}"
            tensors[f"{name}.attn.relative_position_index"] = relative_position_index(
                WINDOW, torch.device("cpu")
            )
            if block % 2:
                mask = shifted_mask(side, side, WINDOW, WINDOW // 2, torch.device("cpu"))
                tensors[f"{name}.attn_mask"] = mask
    return tensors


@torch.no_grad()
@pytest.mark.parametrize("with_buffers", [True, False])
def test_released_tensors_load_with_and_without_their_derived_buffers(swinir, with_buffers):
    with torch.device("meta"):
        loaded = SwinIR(embed_dim=WIDTH, depths=(2, 1), num_heads=(HEADS, HEADS), window_size=WINDOW)
    loaded.load_released_(released(swinir) if with_buffers else swinir.state_dict(), "test")
    images = uniforms(1, 3, 32, 32)
    assert torch.equal(loaded(images), swinir(images))


def test_another_networks_tensors_are_refused(swinir):
    tensors = released(swinir)
    index = "layers.0.residual_group.blocks.0.attn.relative_position_index"
    mask = "layers.0.residual_group.blocks.1.attn_mask"
    for wrong in (
        {**tensors, index: tensors[index].flip(0)},
        {**tensors, mask: torch.zeros_like(tensors[mask])},
        {**tensors, mask.replace("blocks.1", "blocks.0"): tensors[mask]},
        {**tensors, "layers.7.attn_mask": tensors[mask]},
    ):
        with pytest.raises(ValueError, match="does not go with this network's windows"):
            swinir.load_released_(wrong, "file.ckpt")
    del tensors["norm.weight"]
    with pytest.raises(ValueError, match=r"file\.ckpt: .* 1 missing: norm\.weight"):
        swinir.load_released_(tensors, "file.ckpt")


def test_sizes_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="unshuffle is 4"):
        SwinIR(unshuffle=4)
    with pytest.raises(ValueError, match="2 depths for 1 num_heads"):
        SwinIR(depths=(2, 2), num_heads=(2,))
