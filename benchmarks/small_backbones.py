"""Sizes of tiny backbones with every part, to try a benchmark's script on a CPU."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "lucidflux": {
        "transformer": {
            "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2,
            "joint_attention_dim": 16, "pooled_projection_dim": 8, "axes_dims_rope": (2, 2, 4),
        },
        "num_condition_blocks": 1,
        "vae": {"block_out_channels": (4, 4, 8, 8), "layers_per_block": 1, "norm_num_groups": 4},
        "swinir": {"embed_dim": 12, "depths": (2,), "num_heads": (2,), "window_size": 4},
        "siglip": {
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 16, "patch_size": 8,
        },
        "num_text_tokens": 4,
    },
    "dit4sr": {
        "transformer": {
            "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8,
            "num_attention_heads": 2, "joint_attention_dim": 8, "caption_projection_dim": 16,
            "pooled_projection_dim": 8, "pos_embed_max_size": 16, "dual_attention_layers": (0,),
        },
        "vae": {
            "block_out_channels": (4, 4, 4, 4), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 2,
        },
        "num_text_tokens": 4,
    },
}  # fmt: skip
