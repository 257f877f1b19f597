"""Heads as files: the release's and ours, and which embedder they go with."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lucidnft.checkpoint import load_header
from lucidnft.config import parse_config
from lucidnft.rewards import LucidConsistency, ProjectionHead, build_reward
from lucidnft.rewards.projection_head import convert, load_head, save_head
from tests.rewards.small_qwen3_vl import WIDTH, save_small_checkpoint


def released(width: int = WIDTH) -> dict[str, Tensor]:
    """Weights under the names of the release: an nn.Sequential of Linear, GELU, Linear."""
    torch.manual_seed(3)
    layers = torch.nn.Sequential(
        torch.nn.Linear(width, width), torch.nn.GELU(), torch.nn.Linear(width, width)
    )
    return {name: value.detach() for name, value in layers.state_dict().items()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_checkpoint(tmp_path_factory.mktemp("qwen3_vl"))


@pytest.fixture
def head_file(tmp_path: Path) -> Path:
    torch.save(released(), tmp_path / "proj_head.pt")
    return tmp_path / "proj_head.pt"


def test_the_released_head_takes_embeddings_as_they_are(head_file):
    weights, x = released(), 3 * torch.randn(4, 1, WIDTH)
    hidden = F.gelu(F.linear(x, weights["0.weight"], weights["0.bias"]))
    expected = F.normalize(F.linear(hidden, weights["2.weight"], weights["2.bias"]), dim=-1)
    head = load_head(head_file)
    torch.testing.assert_close(head(x), expected)
    assert not torch.allclose(head(2 * x), expected, atol=1e-3)  # so their length matters


@pytest.mark.parametrize("normalise_input", [True, False])
def test_a_head_survives_its_file_with_its_card(tmp_path, normalise_input):
    head = ProjectionHead(5, normalise_input=normalise_input)
    save_head(head, tmp_path / "head.safetensors", embedder="mine")
    found, x = load_head(tmp_path / "head.safetensors"), torch.randn(2, 5)
    assert torch.equal(found(x), head(x)) and found.normalise_input is normalise_input
    header = load_header(tmp_path / "head.safetensors")
    assert header["embedder"] == "mine" and header["dimension"] == 5


class Executes:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_nothing_in_a_pickle_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"0.weight": Executes()}, "proj_head.pt")
    with pytest.raises(ValueError, match=r"proj_head\.pt .* never executed"):
        load_head("proj_head.pt")
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "content",
    [{"0.weight": 3}, {"0.weight": torch.zeros(3, 3)}, {**released(), "2.weight": torch.zeros(3, WIDTH)}],
)
def test_other_weights_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt is not a head of two square layers"):
        load_head(tmp_path / "other.pt")


def test_damaged_and_missing_files_are_named(tmp_path):
    (tmp_path / "cut.pt").write_bytes(b"not a file of torch")
    with pytest.raises(ValueError, match=r"cut\.pt \(19 bytes\) cannot be read as weights"):
        load_head(tmp_path / "cut.pt")
    with pytest.raises(ValueError, match="no weights 'nowhere.pt'; give the path of a weight file$"):
        load_head("nowhere.pt")


def consistency(checkpoint: Path, head: str | Path | None) -> LucidConsistency:
    embedder = {"type": "qwen3_vl", "model_name_or_path": str(checkpoint), "dtype": "float32"}
    settings = {
        "type": "lucid_consistency",
        "embedder": embedder,
        "head": None if head is None else str(head),
    }
    reward = build_reward(settings)
    assert isinstance(reward, LucidConsistency)
    return reward


def test_scores_are_cosines_of_projected_embeddings_and_without_a_head_of_the_embeddings(
    checkpoint, head_file
):
    sr, lr = torch.rand(3, 3, 128, 96), torch.rand(3, 3, 32, 24)
    projected, plain = consistency(checkpoint, head_file), consistency(checkpoint, None)
    z = [plain.embedder.embed(images)[:, 0] for images in (sr, lr)]  # LR at its own size
    torch.testing.assert_close(plain(sr, lr=lr), F.cosine_similarity(*z))
    e = [load_head(head_file)(x) for x in z]
    torch.testing.assert_close(projected(sr, lr=lr), F.cosine_similarity(*e))
    assert not projected.scores_places


def test_a_head_of_another_width_or_embedder_is_refused(checkpoint, tmp_path):
    torch.save(released(7), tmp_path / "narrow.pt")
    with pytest.raises(ValueError, match=f"embeddings of 7 numbers, the embedder 'qwen3_vl' gives {WIDTH}"):
        consistency(checkpoint, tmp_path / "narrow.pt")
    with pytest.raises(
        ValueError, match=r"head 'tiny' was trained with the embedder that ships.*proj_head\.pt"
    ):
        consistency(checkpoint, "tiny")


def test_the_tiny_embedder_without_its_head_is_a_baseline():
    sr, lr = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 16, 16)
    plain, shipped = (
        build_reward({"type": "lucid_consistency", **s})
        for s in ({"head": None}, {"embedder": {"type": "tiny"}})
    )
    assert not torch.allclose(plain(sr, lr=lr), shipped(sr, lr=lr), atol=1e-3)
    assert torch.equal(shipped(sr, lr=lr), build_reward("lucid_consistency")(sr, lr=lr))


def test_a_run_file_names_embedder_and_head():
    reward = {"type": "lucid_consistency", "embedder": {"type": "qwen3_vl"}, "head": "proj_head.pt"}
    sections = {"task": "nft", "model": {"type": "tiny"}, "data": {"type": "lr_folder"}}
    config = parse_config({**sections, "rewards": {"consistency": reward}})
    assert config.rewards["consistency"].embedder.model_name_or_path == "Qwen/Qwen3-VL-Embedding-8B"
    with pytest.raises(ValueError, match=r"embedder\.type: 'qwen3' is unknown; did you mean qwen3_vl\?"):
        parse_config({**sections, "rewards": {"c": {**reward, "embedder": {"type": "qwen3"}}}})


def test_the_released_head_is_converted_once_with_a_card(head_file, tmp_path):
    target = tmp_path / "head.safetensors"
    command = [sys.executable, "-m", "lucidnft.rewards.projection_head", str(head_file), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and f"embeddings of {WIDTH} numbers" in done.stdout, done.stderr
    x = 3 * torch.randn(4, 1, WIDTH)
    assert torch.equal(load_head(target)(x), load_head(head_file)(x))
    card = load_header(target)["converted_from"]
    assert card == {"name": "proj_head.pt", "sha256": hashlib.sha256(head_file.read_bytes()).hexdigest()}
    before = target.read_bytes()
    with pytest.raises(ValueError, match="exists already"):
        convert(head_file, target)
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        convert(head_file, tmp_path / "head.pt")
    assert target.read_bytes() == before
    done = subprocess.run(
        [*command[:-2], "/nowhere.pt", "x.safetensors"], capture_output=True, text=True, check=False
    )
    assert (
        done.returncode == 1 and done.stderr.startswith("projection_head: ") and "/nowhere.pt" in done.stderr
    )
