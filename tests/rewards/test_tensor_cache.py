"""The cache of LR features: bounded, by content; and the reward that uses it, and its device."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lucidnft.checkpoint.fingerprint import tensor_key
from lucidnft.records import ImageBatch
from lucidnft.rewards import LucidConsistency, RewardSuite
from lucidnft.rewards.consistency import TinyConsistencyNetwork
from lucidnft.rewards.embedders import EmbedderArchitecture
from lucidnft.rewards.tensor_cache import TensorCache


def images(count: int, side: int, key: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(key))


def test_the_key_is_the_content() -> None:
    one = images(1, 8)[0]
    assert tensor_key(one) == tensor_key(one.clone().as_strided((3, 8, 8), one.stride()))
    other = one.clone()
    other[0, 0, 0] += 1e-6
    keys = {tensor_key(one), tensor_key(other), tensor_key(one.double()), tensor_key(one, (8, 8))}
    assert len(keys | {tensor_key(one.reshape(3, 4, 16))}) == 5
    assert tensor_key(one.transpose(1, 2)) == tensor_key(one.transpose(1, 2).contiguous())


@given(sizes=st.lists(st.integers(1, 12), max_size=30), limit=st.integers(0, 60))
def test_the_limit_holds_and_the_last_used_stay(sizes: list[int], limit: int) -> None:
    cache = TensorCache(limit)
    for number, size in enumerate(sizes):
        cache.put(str(number), torch.full((size,), number, dtype=torch.uint8))
        found = cache.get(str(number))
        assert (found is not None) == (size <= limit)
        assert found is None or found.tolist() == [number] * size
        assert cache.used_bytes <= limit
        assert cache.used_bytes == sum(
            len(t) for k in map(str, range(number + 1)) if (t := cache.get(k)) is not None
        )


def test_a_kept_tensor_is_a_copy() -> None:
    cache, value = TensorCache(100), torch.zeros(4)
    cache.put("a", value)
    value += 1
    assert cache.get("a").tolist() == [0] * 4  # type: ignore[union-attr]


def reward(**settings: Any) -> tuple[LucidConsistency, list[int], list[str]]:
    torch.manual_seed(0)
    network = TinyConsistencyNetwork(EmbedderArchitecture((8, 8, 8), (1, 1, 1), 8))
    network.requires_grad_(False)
    embedded: list[int] = []
    moves: list[str] = []
    embed, to = network.embedder.embed, network.embedder.to

    def counted(batch: Tensor) -> Tensor:
        embedded.append(len(batch))
        return embed(batch)

    def moved(device: object) -> object:
        moves.append(str(device))
        return to("cpu")

    network.embedder.embed = counted  # type: ignore[method-assign]
    network.embedder.to = moved  # type: ignore[method-assign, assignment]
    network.head.to = lambda device: network.head  # type: ignore[method-assign, assignment, return-value]
    return LucidConsistency(network.embedder, network.head, **settings), embedded, moves


def test_an_lr_image_is_embedded_once_for_the_run() -> None:
    scorer, embedded, _ = reward(lr_cache_bytes=2**20)
    fresh, _, _ = reward()
    lr, sr = images(3, 8), images(3, 32, key=1)
    first = scorer(sr, lr=lr)
    assert embedded == [3, 3]
    second = scorer(sr, lr=torch.cat((lr[:2], images(1, 8, key=9))))
    assert embedded == [3, 3, 1, 3]  # the new LR image alone, then SR
    torch.testing.assert_close(first, fresh(sr, lr=lr))
    torch.testing.assert_close(second[:2], first[:2])
    torch.testing.assert_close(second[2:], fresh(sr[2:], lr=images(1, 8, key=9)))
    scorer(images(3, 48, key=2), lr=lr)  # enlarged to another size, they are other images
    assert embedded[4:] == [3, 3]


def test_without_a_cache_nothing_is_kept() -> None:
    scorer, embedded, _ = reward()
    for _ in range(2):
        scorer(images(2, 32), lr=images(2, 8))
    assert embedded == [2, 2, 2, 2]


def test_offloaded_networks_come_for_a_batch_and_leave_after_it() -> None:
    scorer, embedded, moves = reward(offload=True)
    scorer.to("cuda:1")
    assert moves == ["cpu"]
    scorer.wake()
    assert moves == ["cpu", "cuda:1"]
    scorer.rest()
    assert moves == ["cpu", "cuda:1", "cpu"]
    scorer.to("cpu")  # the suite calls both around a batch, the embeddings lie between
    del moves[:]
    scorer.wake, scorer.rest = (  # type: ignore[method-assign]
        lambda: moves.append(f"awake after {len(embedded)}"),
        lambda: moves.append(f"rest after {len(embedded)}"),
    )
    suite = RewardSuite({"a": scorer})
    suite.score(images(2, 32).unflatten(0, (1, 2)), ImageBatch(images(1, 8), ("x",), (0,)))
    assert moves == ["awake after 0", "rest after 2"]


def test_a_reward_with_a_device_of_its_own_stays_there() -> None:
    scorer, _, moves = reward(device="cuda:1")
    scorer.to("cuda:0")
    assert moves == ["cuda:1"]
    plain, _, plain_moves = reward()
    plain.to("cuda:0")
    assert plain_moves == ["cuda:0"]
