"""The only source of randomness: every draw names its purpose, so no generator state is ever saved.

A resumed run repeats an uninterrupted one because each draw is a function of (seed, purpose, keys)
and of nothing that happened before it.  The same holds across process counts: rollout noise is keyed
by the global group number, not by the rank that happens to hold the group.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derived_seed(seed: int, purpose: str, *keys: int | str) -> int:
    """A 63-bit seed from a run seed, a purpose and any number of keys.

    The parts are hashed with their types and lengths, so ("a", 1) and ("a1",) differ.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in (seed, purpose, *keys):
        # names of files may hold bytes that are not UTF-8
        encoded = f"{type(part).__name__}:{part}".encode("utf-8", "surrogateescape")
        digest.update(len(encoded).to_bytes(4, "little"))
        digest.update(encoded)
    return int.from_bytes(digest.digest(), "little") >> 1


def generator_for(seed: int, purpose: str, *keys: int | str) -> torch.Generator:
    """A CPU generator for one draw.

    It lives on the CPU on every machine: draw there and move the tensor, so that a GPU run and a
    CPU run see the same numbers.
    """
    return torch.Generator("cpu").manual_seed(derived_seed(seed, purpose, *keys))


def numpy_generator_for(seed: int, purpose: str, *keys: int | str) -> np.random.Generator:
    """The same, for numpy code (degradations, synthetic defects)."""
    return np.random.default_rng(derived_seed(seed, purpose, *keys))


class PreservedGlobalRng:
    """Context manager that leaves the global generators of Python, numpy and torch as it found them.

    For third-party code that reseeds them (some pyiqa releases do so in every call).
    """

    def __enter__(self) -> PreservedGlobalRng:
        self._python = random.getstate()
        self._numpy = np.random.get_state()
        self._torch = torch.random.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        return self

    def __exit__(self, *exc_info: object) -> None:
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.random.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
