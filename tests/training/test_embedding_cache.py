"""The embedding cache: made once, continued after a crash, keyed by everything it depends on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lucidnft.checkpoint import load_json
from lucidnft.training.embedding_cache import (
    CONTENTS_PER_SHARD,
    EmbeddingCache,
    embedder_identity,
    file_identity,
)


def value_of(number: int) -> dict[str, Tensor]:
    return {"lr": torch.full((2, 3), float(number)), "sr": torch.tensor([number + 0.5])}


class Maker:
    """Counts what it is asked for; fails at one number, as a full disk or a kill would."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.embedded: list[int] = []
        self.fail_at = fail_at

    def draw(self, number: int) -> int:
        return number

    def embed(self, number: int) -> dict[str, Tensor]:
        if number == self.fail_at:
            raise KeyboardInterrupt
        self.embedded.append(number)
        return value_of(number)


def build(cache: EmbeddingCache, maker: Maker, rank: int = 0, num_processes: int = 1) -> None:
    cache.build(maker.draw, maker.embed, desc="test", rank=rank, num_processes=num_processes)


def test_what_was_built_is_read_in_order_and_not_built_again(tmp_path: Path) -> None:
    cache, maker = EmbeddingCache(tmp_path, {"a": 1}, CONTENTS_PER_SHARD + 3), Maker()
    build(cache, maker)
    assert maker.embedded == list(range(CONTENTS_PER_SHARD + 3))
    found = cache.load()
    assert found["lr"].dtype == torch.float16 and found["lr"].shape == (CONTENTS_PER_SHARD + 3, 2, 3)
    assert found["sr"][:, 0].tolist() == [n + 0.5 for n in range(CONTENTS_PER_SHARD + 3)]
    build(EmbeddingCache(tmp_path, {"a": 1}, CONTENTS_PER_SHARD + 3), again := Maker())
    assert again.embedded == []
    assert load_json(cache.folder / "manifest.json") == {"a": 1}


def test_a_killed_build_goes_on_with_the_shard_it_was_at(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, {"a": 1}, 2 * CONTENTS_PER_SHARD + 5)
    with pytest.raises(KeyboardInterrupt):
        build(cache, Maker(fail_at=CONTENTS_PER_SHARD + 7))
    assert cache.missing() == [1, 2]
    with pytest.raises(ValueError, match=r"shards \[1, 2\] are missing"):
        cache.load()
    build(cache, maker := Maker())
    assert maker.embedded == list(range(CONTENTS_PER_SHARD, 2 * CONTENTS_PER_SHARD + 5))
    assert cache.load()["sr"][:, 0].tolist() == [n + 0.5 for n in range(2 * CONTENTS_PER_SHARD + 5)]


def test_more_contents_keep_the_full_shards_and_fewer_read_a_part(tmp_path: Path) -> None:
    build(EmbeddingCache(tmp_path, {"a": 1}, CONTENTS_PER_SHARD + 3), Maker())
    more = EmbeddingCache(tmp_path, {"a": 1}, CONTENTS_PER_SHARD + 9)
    build(more, maker := Maker())
    assert maker.embedded == list(range(CONTENTS_PER_SHARD, CONTENTS_PER_SHARD + 9))
    fewer = EmbeddingCache(tmp_path, {"a": 1}, 5)
    assert fewer.missing() == [] and fewer.load()["sr"].shape == (5, 1)


def test_processes_share_out_the_shards_whoever_comes_first(tmp_path: Path) -> None:
    cache, makers = EmbeddingCache(tmp_path, {"a": 1}, 3 * CONTENTS_PER_SHARD), [Maker(), Maker()]
    assert [cache.share(rank, 2) for rank in range(2)] == [[0, 2], [1]]
    build(cache, makers[0], 0, 2)
    assert cache.share(1, 2) == [1]  # what is missing by now is another list, its share is the same
    build(cache, makers[1], 1, 2)
    assert makers[1].embedded == list(range(CONTENTS_PER_SHARD, 2 * CONTENTS_PER_SHARD))
    assert not set(makers[0].embedded) & set(makers[1].embedded)
    assert cache.load()["sr"][:, 0].tolist() == [n + 0.5 for n in range(3 * CONTENTS_PER_SHARD)]


def test_every_part_of_the_identity_makes_another_cache(tmp_path: Path) -> None:
    identity: dict[str, Any] = {"embedder": {"type": "tiny"}, "files": [["a.png", 3, 4]], "seed": 0}
    folders = {
        EmbeddingCache(tmp_path, other, 5).folder
        for other in (identity, {**identity, "seed": 1}, {**identity, "files": [["a.png", 3, 5]]}, {})
    }
    assert len(folders) == 4
    assert EmbeddingCache(tmp_path, dict(reversed(identity.items())), 9).folder in folders


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, {}, 4)
    build(cache, Maker())
    shard = cache.folder / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(ValueError, match="shard-00000.safetensors"):
        cache.missing()


def test_embeddings_that_are_not_finite_or_of_other_shapes_stop_the_build(tmp_path: Path) -> None:
    def overflow(number: int) -> dict[str, Tensor]:
        return {"lr": torch.tensor([7e4 if number == 2 else 1.0])}

    def ragged(number: int) -> dict[str, Tensor]:
        return {"lr": torch.zeros(3 if number == 2 else 4)}

    cache = EmbeddingCache(tmp_path, {}, 4)
    with pytest.raises(ValueError, match="content 2: the embedding 'lr' is not finite"):
        cache.build(lambda n: n, overflow, desc="x")
    with pytest.raises(ValueError, match=r"content 2: 'lr' has shape \(3,\).*\(4,\).*one size"):
        cache.build(lambda n: n, ragged, desc="x")
    assert cache.missing() == [0]


def test_a_local_model_is_identified_by_its_files(tmp_path: Path) -> None:
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"1")
    settings = {"type": "hf_vision", "model_name_or_path": str(weights.parent)}
    before = embedder_identity(settings)
    assert before["model_name_or_path/files"] == [file_identity(weights)]
    weights.write_bytes(b"22")
    os.utime(weights, ns=(1, 1))
    assert embedder_identity(settings) != before
    assert embedder_identity({"type": "tiny"}) == {"type": "tiny"}
