"""Where conditions are kept: bounds, crashes, damage, and several processes in one folder."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lucidnft.backbones.condition_cache import STALE_SECONDS, DiskStore, MemoryStore
from lucidnft.checkpoint import save_tensors
from tests.backbones.random_tensors import draws

KEYS = [f"{number:x}" * 32 for number in range(10)]


def fields(number: int = 0) -> dict[str, Tensor]:
    """2000 bytes of two dtypes."""
    return {"a": draws(4, 100, seed=number), "b": draws(2, 100, seed=100 + number).to(torch.bfloat16)}


def is_same(found: dict[str, Tensor] | None, want: dict[str, Tensor]) -> bool:
    return (
        found is not None
        and found.keys() == want.keys()
        and all(found[n].dtype == v.dtype and torch.equal(found[n], v) for n, v in want.items())
    )


def on_disk(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_what_comes_back_is_what_was_kept(kind: str, tmp_path: Path) -> None:
    store = MemoryStore(10_000) if kind == "memory" else DiskStore(tmp_path / "cache", 100_000)
    assert store.get(KEYS[0]) is None
    changed = fields()
    store.put(KEYS[0], changed)
    changed["a"].zero_()
    assert is_same(store.get(KEYS[0]), fields())
    assert store.get(KEYS[1]) is None


def test_memory_keeps_what_was_used_last_within_its_bound() -> None:
    store = MemoryStore(3 * 2000)
    for number in range(3):
        store.put(KEYS[number], fields(number))
    store.get(KEYS[0])
    store.put(KEYS[3], fields(3))
    assert store.used_bytes == 6000
    assert [store.get(key) is None for key in KEYS[:4]] == [False, True, False, False]
    store.put(KEYS[3], fields(3))  # is there already
    assert store.used_bytes == 6000 and all(store.get(KEYS[number]) is not None for number in (0, 2, 3))


def test_the_folder_keeps_what_was_used_last_within_its_bound_whoever_wrote_it(tmp_path: Path) -> None:
    DiskStore(tmp_path, 10**6).put(KEYS[0], fields())
    size = on_disk(tmp_path)[0].stat().st_size
    first, second = (DiskStore(tmp_path, int(3.5 * size)) for _ in range(2))
    first.put(KEYS[1], fields(1))
    second.put(KEYS[2], fields(2))
    for age, key in enumerate(KEYS[:3]):
        os.utime(first.path(key), (1000 - age, 1000 - age))  # the last is the oldest
    assert first.get(KEYS[2]) is not None
    (tmp_path / "notes.txt").write_text("somebody's own")
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "x.safetensors").write_bytes(b"0" * 10 * size)
    second.put(KEYS[3], fields(3))
    assert [first.get(key) is None for key in KEYS[:4]] == [False, True, False, False]
    assert (tmp_path / "notes.txt").exists() and (tmp_path / "ab" / "x.safetensors").exists()


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_condition_above_the_bound_is_not_kept_and_says_so(kind: str, tmp_path: Path) -> None:
    store = MemoryStore(1999) if kind == "memory" else DiskStore(tmp_path, 1999)
    small = {"a": draws(25)}
    store.put(KEYS[1], small)
    with pytest.warns(UserWarning, match="condition of one image takes .*condition_cache_gib"):
        store.put(KEYS[0], fields())
    assert store.get(KEYS[0]) is None and is_same(store.get(KEYS[1]), small)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def cut_within_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5])


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def of_another_key(path: Path) -> None:
    store = DiskStore(path.parent.parent, 10**6)
    store.put(KEYS[1], fields(1))
    store.path(KEYS[1]).rename(path)


def of_another_program(path: Path) -> None:
    save_tensors(path, fields(), {})


@pytest.mark.parametrize(
    "damage", [cut_short, cut_within_the_header, one_bit, of_another_key, of_another_program]
)
def test_a_damaged_file_is_reported_and_replaced(damage, tmp_path: Path) -> None:
    store = DiskStore(tmp_path, 10**6)
    store.put(KEYS[0], fields())
    damage(store.path(KEYS[0]))
    with pytest.warns(UserWarning, match=f"condition cache: .*{KEYS[0]}.*computed again"):
        assert store.get(KEYS[0]) is None
    store.put(KEYS[0], fields())
    assert is_same(store.get(KEYS[0]), fields())


def in_a_process_of_its_own(work: Callable[[], None]) -> int:
    """Start it; the number of the process.  Forked: a new interpreter takes seconds to load torch."""
    process = os.fork()
    if process == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    return process


def exit_code(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.parametrize("rename", [1, 2])
def test_what_a_killed_process_leaves_is_never_read_and_goes_away(rename: int, tmp_path: Path) -> None:
    """Killed between writing and renaming, at either of the two renames."""

    def killed() -> None:
        replace, calls = os.replace, []

        def die(source: str, target: str) -> None:
            calls.append(source)
            if len(calls) == rename:
                os._exit(9)
            replace(source, target)

        os.replace = die  # type: ignore[assignment]
        DiskStore(tmp_path, 10**6).put(KEYS[0], fields())

    assert exit_code(in_a_process_of_its_own(killed)) == 9
    (left,) = on_disk(tmp_path)
    store = DiskStore(tmp_path, 10**6)
    assert store.get(KEYS[0]) is None
    store.put(KEYS[0], fields())
    assert is_same(store.get(KEYS[0]), fields())
    assert left.exists()  # it may still be being written
    long_ago = left.stat().st_mtime - STALE_SECONDS - 1
    os.utime(left, (long_ago, long_ago))
    DiskStore(tmp_path, 10**6).put(KEYS[1], fields(1))
    assert on_disk(tmp_path) == [store.path(KEYS[0]), store.path(KEYS[1])]


@pytest.mark.filterwarnings("error:condition cache")
def test_processes_that_write_the_same_key_read_only_whole_files(tmp_path: Path) -> None:
    def write_and_read() -> None:
        store = DiskStore(tmp_path, 10**6)
        for _ in range(30):
            store.put(KEYS[0], fields())
            assert is_same(store.get(KEYS[0]), fields())

    writers = [in_a_process_of_its_own(write_and_read) for _ in range(3)]
    assert [exit_code(writer) for writer in writers] == [0] * 3
    store = DiskStore(tmp_path, 10**6)
    assert is_same(store.get(KEYS[0]), fields()) and on_disk(tmp_path) == [store.path(KEYS[0])]


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match="file, is a file; name a folder"):
        DiskStore(file, 100)
    store = DiskStore(tmp_path / "later", 10**6)
    (tmp_path / "later").touch()
    with pytest.raises(OSError, match="condition cache cannot write .*condition_cache to memory or none"):
        store.put(KEYS[0], fields())


@pytest.mark.parametrize("failing", ["first", "last"])
def test_a_write_that_fails_leaves_nothing(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def full(source: str, target: Path) -> None:
        if failing == "first" or target == store.path(KEYS[0]):
            raise OSError(28, "No space left on device")
        replace(source, target)

    store = DiskStore(tmp_path, 10**6)
    monkeypatch.setattr("lucidnft.backbones.condition_cache.os.replace", full)
    with pytest.raises(OSError, match="No space left on device; free some space") as error:
        store.put(KEYS[0], fields())
    assert "output_dir" not in str(error.value)  # advice for checkpoints
    monkeypatch.undo()
    assert on_disk(tmp_path) == [] and store.get(KEYS[0]) is None
