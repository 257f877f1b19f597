"""The trained head of LucidConsistency (arXiv 2603.05947), shared by LR and SR, and its files.

    python -m lucidnft.rewards.projection_head proj_head.pt head.safetensors

turns the release's file, or any other that `load_head` reads, into safetensors with a card in its header.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lucidnft.checkpoint import save_tensors
from lucidnft.checkpoint.released_files import read_released_file
from lucidnft.rewards.weights import load_weights_, read_header, weight_file

HEAD_TYPE = "consistency_head"


class ProjectionHead(nn.Module):
    """Linear(D, D), GELU, Linear(D, D): (..., D) -> (..., D), L2-normalised."""

    def __init__(self, dimension: int, *, normalise_input: bool = True) -> None:
        """normalise_input: give embeddings a norm of sqrt(D) first; the published head takes them as they are."""
        super().__init__()
        self.dimension = dimension
        self.normalise_input = normalise_input
        self.first = nn.Linear(dimension, dimension)
        self.second = nn.Linear(dimension, dimension)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Embeddings (..., D), not normalised, -> (..., D), L2-normalised."""
        if self.normalise_input:
            embeddings = F.normalize(embeddings, dim=-1) * self.dimension**0.5
        return F.normalize(self.second(F.gelu(self.first(embeddings))), dim=-1)


def load_head(path: str | Path) -> ProjectionHead:
    """A head from a .safetensors file of `save_head`, or from the release's proj_head.pt.

    Nothing in a .pt file is executed: it is read weights-only.

    Raises:
        ValueError: no such file, another kind of weights, or shapes that are not those of a head.
    """
    path = weight_file(path, {}, "lucid_consistency")
    if path.suffix not in (".pt", ".pth", ".bin"):
        header = read_header(path, HEAD_TYPE)
        head = ProjectionHead(int(header["dimension"]), normalise_input=bool(header["normalise_input"]))
        load_weights_(head, path)
        return head
    tensors = read_released_file(path)
    shapes = {n: tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__ for n, v in tensors.items()}
    weight = tensors.get("0.weight")
    width = weight.shape[0] if isinstance(weight, Tensor) else 0
    square, line = (width, width), (width,)
    if shapes != {"0.weight": square, "0.bias": line, "2.weight": square, "2.bias": line}:
        raise ValueError(
            f"{path} is not a head of two square layers, 0 and 2, with biases; it holds {shapes}"
        )
    head = ProjectionHead(width, normalise_input=False)
    names = {
        "first.weight": "0.weight",
        "first.bias": "0.bias",
        "second.weight": "2.weight",
        "second.bias": "2.bias",
    }
    head.load_state_dict({ours: tensors[theirs].float() for ours, theirs in names.items()})
    return head


def save_head(head: ProjectionHead, path: str | Path, **card: Any) -> None:
    """Write a head as safetensors; `card` (embedder, training data, metrics, ...) joins the header."""
    facts = {"type": HEAD_TYPE, "dimension": head.dimension, "normalise_input": head.normalise_input}
    save_tensors(path, {n: p.detach().contiguous() for n, p in head.state_dict().items()}, {**card, **facts})


def convert(source: Path, target: Path) -> None:
    """Write the head of source as safetensors; its card says which file it came from.

    Raises:
        ValueError: as `load_head`; or the target has another ending, or is there already.
    """
    if target.suffix != ".safetensors" or target.exists():
        what = "exists already; choose another name" if target.exists() else "must end in .safetensors"
        raise ValueError(f"{target} {what}")
    head = load_head(source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    save_head(head, target, converted_from={"name": source.name, "sha256": digest})
    print(
        f"{target}: a head for embeddings of {head.dimension} numbers, from {source.name} (sha256 {digest[:16]}...)"
    )


def main() -> None:
    """The command.  A file that cannot be converted ends it with one message."""
    parser = argparse.ArgumentParser(description="Turn a projection head into safetensors.")
    parser.add_argument("source", type=Path, help="proj_head.pt of the release, or another head")
    parser.add_argument("target", type=Path, help="a .safetensors file")
    args = parser.parse_args()
    try:
        convert(args.source, args.target)
    except (ValueError, OSError) as error:
        sys.exit(f"projection_head: {error}")


if __name__ == "__main__":
    main()
