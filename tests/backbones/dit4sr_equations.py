"""The published equations of DiT4SR on plain tensors, written down apart from the code under test."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class Equations:
    """A velocity from a state dict and SD3's configuration."""

    def __init__(self, state: Mapping[str, Tensor], config: Mapping[str, Any], lr_key: str, scale: float):
        self.state, self.config, self.lr_key, self.scale = state, config, lr_key, scale

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def rms(self, name: str, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.state[f"{name}.weight"]

    def patches(self, latent: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, rows, columns, D), with the middle of the table of positions."""
        proj = (self.state["pos_embed.proj.weight"], self.state["pos_embed.proj.bias"])
        x = F.conv2d(latent, *proj, stride=2).permute(0, 2, 3, 1)
        side = self.config["pos_embed_max_size"]
        table = self.state["pos_embed.pos_embed"].view(side, side, -1)
        top, left = (side - x.shape[1]) // 2, (side - x.shape[2]) // 2
        return x + table[top : top + x.shape[1], left : left + x.shape[2]]

    def time_and_text(self, timestep: Tensor, pooled: Tensor) -> Tensor:
        angles = timestep[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
        total = torch.zeros(())
        for name, x in (
            ("timestep_embedder", torch.cat([angles.cos(), angles.sin()], dim=1)),
            ("text_embedder", pooled),
        ):
            hidden = F.silu(self.linear(f"time_text_embed.{name}.linear_1", x))
            total = total + self.linear(f"time_text_embed.{name}.linear_2", hidden)
        return total

    def attention(self, name: str, noise: Tensor, lr: Tensor, text: Tensor | None) -> list[Tensor]:
        """Modulated tokens in, projected results out: noise, LR and (unprojected) text."""
        heads = self.config["num_attention_heads"]

        def split(x: Tensor) -> Tensor:
            return x.unflatten(2, (heads, -1)).transpose(1, 2)

        def of_lr(letter: str) -> Tensor:
            return split(self.linear(f"{name}.to_{letter}_control", self.linear(f"{name}.to_{letter}", lr)))

        q, k, v = (split(self.linear(f"{name}.to_{letter}", noise)) for letter in "qkv")
        k = self.rms(f"{name}.norm_k", k)
        lr_key = k if self.lr_key == "noise" else of_lr("k")
        queries = [self.rms(f"{name}.norm_q", x) for x in (q, of_lr("q"))]
        keys, values = [k, self.rms(f"{name}.norm_k", lr_key)], [v, of_lr("v")]
        if text is not None:
            q, k, v = (split(self.linear(f"{name}.add_{letter}_proj", text)) for letter in "qkv")
            queries.append(self.rms(f"{name}.norm_added_q", q))
            keys.append(self.rms(f"{name}.norm_added_k", k))
            values.append(v)
        weights = torch.cat(queries, 2) @ torch.cat(keys, 2).transpose(2, 3) / math.sqrt(q.shape[3])
        out = (weights.softmax(-1) @ torch.cat(values, 2)).transpose(1, 2).flatten(2)
        length = noise.shape[1]
        of_noise, of_lr_tokens, rest = out[:, :length], out[:, length : 2 * length], out[:, 2 * length :]
        control = self.linear(f"{name}.to_out_control", of_lr_tokens + lr)
        return [self.linear(f"{name}.to_out.0", of_noise), control, rest]

    def block(
        self, i: int, noise: Tensor, lr: Tensor, text: Tensor, temb: Tensor, grid: tuple[int, int]
    ) -> Any:
        name = f"transformer_blocks.{i}"
        last, dual = i == self.config["num_layers"] - 1, i in self.config["dual_attention_layers"]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate, *second = self.modulation(
            f"{name}.norm1", temb, 9 if dual else 6
        )
        of_text = self.modulation(f"{name}.norm1_context", temb, 2 if last else 6)
        text_shift, text_scale = of_text[:2] if not last else of_text[1::-1]
        text_in = norm(text) * (1 + text_scale) + text_shift
        streams = [noise, lr]
        *out, text_out = self.attention(
            f"{name}.attn", *(norm(x) * (1 + scale) + shift for x in streams), text_in
        )
        results = [x + gate * y for x, y in zip(streams, out, strict=True)]
        if dual:
            shift2, scale2, gate2 = second
            *out, _ = self.attention(
                f"{name}.attn2", *(norm(x) * (1 + scale2) + shift2 for x in streams), None
            )
            results = [x + gate2 * y for x, y in zip(results, out, strict=True)]
        hidden = [self.activated(f"{name}.ff", norm(x) * (1 + mlp_scale) + mlp_shift) for x in results]
        hidden[0] = hidden[0] + self.scale * self.neighbours(f"{name}.ff.control_conv", hidden[1], grid)
        results = [
            x + mlp_gate * self.linear(f"{name}.ff.net.2", y) for x, y in zip(results, hidden, strict=True)
        ]
        if not last:
            _, _, gate, mlp_shift, mlp_scale, mlp_gate = of_text
            text = text + gate * self.linear(f"{name}.attn.to_add_out", text_out)
            y = self.activated(f"{name}.ff_context", norm(text) * (1 + mlp_scale) + mlp_shift)
            text = text + mlp_gate * self.linear(f"{name}.ff_context.net.2", y)
        return *results, text

    def modulation(self, name: str, temb: Tensor, parts: int) -> tuple[Tensor, ...]:
        return self.linear(f"{name}.linear", F.silu(temb))[:, None].chunk(parts, dim=2)

    def activated(self, name: str, x: Tensor) -> Tensor:
        return F.gelu(self.linear(f"{name}.net.0.proj", x), approximate="tanh")

    def neighbours(self, name: str, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Every channel's 3 x 3 sum over neighbouring tokens, nothing beyond the border, one offset at a time."""
        weight, (rows, columns) = self.state[f"{name}.weight"], grid
        padded = F.pad(tokens.unflatten(1, grid), (0, 0, 1, 1, 1, 1))
        total = self.state[f"{name}.bias"].expand(tokens.shape[0], rows, columns, -1)
        for dy in range(3):
            for dx in range(3):
                total = total + weight[:, 0, dy, dx] * padded[:, dy : dy + rows, dx : dx + columns]
        return total.flatten(1, 2)

    def velocity(self, x_t: Tensor, lr: Tensor, text: Tensor, pooled: Tensor, timestep: Tensor) -> Tensor:
        noise_image, lr_image = self.patches(x_t), self.patches(lr)
        grid = (noise_image.shape[1], noise_image.shape[2])
        streams = [noise_image.flatten(1, 2), lr_image.flatten(1, 2)]
        text, temb = self.linear("context_embedder", text), self.time_and_text(timestep, pooled)
        for i in range(self.config["num_layers"]):
            *streams, text = self.block(i, *streams, text, temb, grid)
        scale, shift = self.modulation("norm_out", temb, 2)
        out = self.linear("proj_out", norm(streams[0]) * (1 + scale) + shift).unflatten(1, grid)
        pixels = out.unflatten(3, (2, 2, x_t.shape[1]))  # (B, rows, columns, y, x, C)
        return pixels.permute(0, 5, 1, 3, 2, 4).reshape(x_t.shape)


norm: Callable[[Tensor], Tensor] = lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-6)  # noqa: E731
