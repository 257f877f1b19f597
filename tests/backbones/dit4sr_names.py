"""Names and shapes of DiT4SR's tensors at full size: `python -m tests.backbones.dit4sr_names` writes the fixture."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lucidnft.backbones.dit4sr_architecture import SD3Sizes
from lucidnft.backbones.dit4sr_network import DiT4SRNetwork

FIXTURE = Path(__file__).with_name("dit4sr_names.json")


def full_size_names() -> dict[str, list[int]]:
    """{name: shape}, from a network without memory."""
    with torch.device("meta"):
        network = DiT4SRNetwork(lr_key="lr", **SD3Sizes().model_dump())
    return {name: list(value.shape) for name, value in sorted(network.state_dict().items())}


if __name__ == "__main__":
    lines = [f"{json.dumps(name)}: {json.dumps(shape)}" for name, shape in full_size_names().items()]
    FIXTURE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
