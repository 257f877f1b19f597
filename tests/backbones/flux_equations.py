"""FLUX and LucidFlux's branches written out in plain PyTorch, over tensors under their released names.

Batches, heads and every product are spelled out, so that it shares nothing with what it checks.
"""

import math

import torch
from torch.nn import functional as F


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def frequencies(x):
    """(B,) -> (B, 256): cosines, then sines."""
    rates = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    angles = x[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def embed(w, name, x):
    return linear(w, f"{name}.out_layer", F.silu(linear(w, f"{name}.in_layer", x)))


def vector(w, t, guidance, pooled):
    return (
        embed(w, "time_in", frequencies(1000 * t))
        + embed(w, "guidance_in", frequencies(1000 * guidance))
        + embed(w, "vector_in", pooled)
    )


def rotate(x, ids, axes):
    """x (B, heads, L, d): pairs of neighbouring channels turned by position * 10000^(-2i / axis)."""
    angles = torch.cat(
        [ids[:, a, None] * 10000.0 ** (-torch.arange(0, d, 2) / d) for a, d in enumerate(axes)], dim=1
    )
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = (even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos())
    return torch.stack(turned, dim=-1).flatten(-2)


def heads_of(w, name, qkv, num_heads):
    """Queries and keys with unit mean square per head, times a learned scale; values as they are."""
    batch, length, _ = qkv.shape
    q, k, v = qkv.reshape(batch, length, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    unit = [x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() for x in (q, k)]
    return unit[0] * w[f"{name}.query_norm.scale"], unit[1] * w[f"{name}.key_norm.scale"], v


def attend(q, k, v, ids, axes):
    q, k = rotate(q, ids, axes), rotate(k, ids, axes)
    out = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
    return out.transpose(1, 2).flatten(2)


def double_block(w, name, img, txt, vec, ids, num_heads, axes):
    streams, joint = {}, []
    for side, x in (("txt", txt), ("img", img)):
        modulation = linear(w, f"{name}.{side}_mod.lin", F.silu(vec))[:, None].chunk(6, dim=-1)
        shift, scale = modulation[:2]
        qkv = linear(w, f"{name}.{side}_attn.qkv", (1 + scale) * norm(x) + shift)
        joint.append(heads_of(w, f"{name}.{side}_attn.norm", qkv, num_heads))
        streams[side] = (x, modulation)
    q, k, v = (torch.cat(parts, dim=2) for parts in zip(*joint, strict=True))
    attended = attend(q, k, v, ids, axes).split([txt.shape[1], img.shape[1]], dim=1)
    results = []
    for (side, (x, modulation)), out in zip(streams.items(), attended, strict=True):
        _, _, gate, shift, scale, mlp_gate = modulation
        x = x + gate * linear(w, f"{name}.{side}_attn.proj", out)
        hidden = linear(w, f"{name}.{side}_mlp.0", (1 + scale) * norm(x) + shift)
        results.append(x + mlp_gate * linear(w, f"{name}.{side}_mlp.2", F.gelu(hidden, approximate="tanh")))
    return results[1], results[0]


def single_block(w, name, x, vec, ids, num_heads, axes):
    shift, scale, gate = linear(w, f"{name}.modulation.lin", F.silu(vec))[:, None].chunk(3, dim=-1)
    width = x.shape[-1]
    hidden = linear(w, f"{name}.linear1", (1 + scale) * norm(x) + shift)
    q, k, v = heads_of(w, f"{name}.norm", hidden[..., : 3 * width], num_heads)
    mlp = F.gelu(hidden[..., 3 * width :], approximate="tanh")
    return x + gate * linear(w, f"{name}.linear2", torch.cat([attend(q, k, v, ids, axes), mlp], dim=-1))


def ids_of(num_text, height, width):
    """Zeros for text; 0, row, column for the h/2 x w/2 image tokens."""
    image = [[0.0, float(row), float(column)] for row in range(height // 2) for column in range(width // 2)]
    return torch.tensor([[0.0, 0.0, 0.0]] * num_text + image)


def packed(latents):
    """(B, C, h, w) -> (B, h/2 * w/2, 4C), token by token."""
    _, _, height, width = latents.shape
    tokens = [
        latents[:, :, row : row + 2, column : column + 2].flatten(1)
        for row in range(0, height, 2)
        for column in range(0, width, 2)
    ]
    return torch.stack(tokens, dim=1)


def trunk(w, tokens, text, t, guidance, pooled, residuals, *, size, num_heads, axes, depths):
    """Packed velocity; residuals[l] is added to the image tokens after double block l."""
    ids = ids_of(text.shape[1], *size)
    vec = vector(w, t, guidance, pooled)
    img, txt = linear(w, "img_in", tokens), linear(w, "txt_in", text)
    for layer in range(depths[0]):
        img, txt = double_block(w, f"double_blocks.{layer}", img, txt, vec, ids, num_heads, axes)
        img = img + residuals[layer]
    x = torch.cat([txt, img], dim=1)
    for layer in range(depths[1]):
        x = single_block(w, f"single_blocks.{layer}", x, vec, ids, num_heads, axes)
    img = x[:, text.shape[1] :]
    shift, scale = linear(w, "final_layer.adaLN_modulation.1", F.silu(vec))[:, None].chunk(2, dim=-1)
    return linear(w, "final_layer.linear", (1 + scale) * norm(img) + shift)


def branch(w, tokens, image, text, t, guidance, pooled, *, size, num_heads, axes):
    """The outputs of a branch's blocks."""
    x = image
    for conv in range(8):
        name = f"input_hint_block.{2 * conv}"
        stride = 2 if conv in (2, 4, 6) else 1
        x = F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=stride, padding=1)
        x = F.silu(x) if conv < 7 else x
    img = linear(w, "img_in", tokens) + linear(w, "pos_embed_input", packed(x))
    txt, vec = linear(w, "txt_in", text), vector(w, t, guidance, pooled)
    ids, outputs = ids_of(text.shape[1], *size), []
    for layer in range(2):
        img, txt = double_block(w, f"double_blocks.{layer}", img, txt, vec, ids, num_heads, axes)
        outputs.append(linear(w, f"controlnet_blocks.{layer}", img))
    return outputs


def modulated(w, outputs, t, layer):
    """A branch's share of the residual of one layer."""
    embeddings = []
    for name, value in (
        ("timestep_embedder", 1000 * t),
        ("control_index_embedder", torch.tensor([float(layer)])),
    ):
        hidden = F.silu(linear(w, f"{name}.linear_1", frequencies(value)))
        embeddings.append(linear(w, f"{name}.linear_2", hidden))
    shift, scale = linear(w, "linear", F.silu(embeddings[0] + embeddings[1]))[:, None].chunk(2, dim=-1)
    return (1 + scale) * norm(outputs[layer % 2]) + shift
