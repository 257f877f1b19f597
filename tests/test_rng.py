"""Draws are functions of their keys, whatever these hold."""

import os

import torch

from lucidnft.rng import derived_seed, generator_for


def test_names_of_files_that_are_not_utf8_key_draws_of_their_own():
    names = [os.fsdecode(name) for name in (b"caf\xe9", b"caf\xe8", "caf\u00e9".encode())]
    assert len({derived_seed(0, "restore", name) for name in names}) == 3


def test_types_and_places_of_keys_tell_draws_apart():
    keys = [("a", 1), ("a1",), ("a", "1"), (1, "a"), ("a",), ()]
    assert len({derived_seed(0, "restore", *key) for key in keys}) == len(keys)
    draws = [torch.randn(3, generator=generator_for(0, purpose, "a")) for purpose in ("restore", "rollout")]
    assert not torch.equal(*draws)
    assert torch.equal(draws[0], torch.randn(3, generator=generator_for(0, "restore", "a")))
