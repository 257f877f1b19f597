"""Tensors and JSON come back bit for bit, or one message says why not; a failed save changes nothing."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lucidnft.checkpoint import (
    CheckpointWriteError,
    load_header,
    load_json,
    load_tensors,
    save_json,
    save_tensors,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def bits(tensor: torch.Tensor) -> bytes:
    return torch.cat([tensor.reshape(-1)]).view(torch.uint8).numpy().tobytes()


@given(
    shapes=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1).filter(
            lambda name: name != "__metadata__"
        ),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 2**31)),
        max_size=5,
    ),
    header=st.dictionaries(st.text(), JSON_VALUES, max_size=4),
)
def test_round_trip_keeps_bits_shapes_dtypes_and_header(tmp_path_factory, shapes, header):
    tensors = {}
    for name, (dtype, shape, seed) in shapes.items():
        raw = torch.randint(
            0, 256, (*shape, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
        )
        tensors[name] = (
            (raw[..., 0] > 127)
            if dtype is torch.bool
            else raw[..., : dtype.itemsize].contiguous().view(dtype)[..., 0]
        )
    path = tmp_path_factory.mktemp("trip") / "file.safetensors"
    save_tensors(path, tensors, header)
    loaded, loaded_header = load_tensors(path, expected=tensors)
    assert loaded_header == header == load_header(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert bits(loaded[name]) == bits(tensor)


def test_views_shared_and_strided_tensors_are_stored_whole(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "base": base,
        "same": base,
        "row": base[1],
        "transposed": base.T,
        "grad": torch.ones(2, requires_grad=True),
    }
    save_tensors(tmp_path / "f.safetensors", tensors, {})
    loaded, _ = load_tensors(tmp_path / "f.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor), name


def test_same_content_gives_the_same_bytes(tmp_path):
    tensors = {name: torch.ones(3) for name in "cab"}
    for name in ("one", "two"):
        save_tensors(tmp_path / name, tensors, {"b": 1, "a": [1, 2]})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_wrong_keys_and_shapes_are_one_error_with_counts_and_the_first_few(tmp_path):
    path = tmp_path / "f.safetensors"
    save_tensors(path, {"kept": torch.ones(2), "shaped": torch.ones(3), "odd": torch.ones(1)}, {})
    expected = {"kept": (2,), "shaped": torch.ones(4)} | {f"lost{i}": (1,) for i in range(5)}
    with pytest.raises(ValueError) as error:
        load_tensors(path, expected=expected)
    message = str(error.value)
    assert "5 missing: lost0, lost1, lost2 and 2 more" in message
    assert "1 unexpected: odd" in message
    assert "1 of another shape: shaped is (3,), not (4,)" in message
    assert str(path) in message


def test_a_0d_tensor_is_not_a_one_element_vector(tmp_path):
    save_tensors(tmp_path / "f", {"step": torch.tensor(7.0)}, {})
    with pytest.raises(ValueError, match=r"step is \(\), not \(1,\)"):
        load_tensors(tmp_path / "f", expected={"step": (1,)})


@pytest.mark.parametrize("kept", [0, 3, 8, 40, -1])
def test_a_file_cut_anywhere_is_a_clear_error(tmp_path, kept):
    path = tmp_path / "f.safetensors"
    save_tensors(path, {"a": torch.arange(100.0)}, {"step": 3})
    content = path.read_bytes()
    path.write_bytes(content[:kept] if kept >= 0 else content[:-1])
    with pytest.raises(ValueError, match=r"f\.safetensors \(\d+ bytes\) is not a readable safetensors file"):
        load_tensors(path)


def with_metadata(metadata: dict[str, str]) -> bytes:
    text = json.dumps({"__metadata__": metadata}).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 a zip, such as an old torch file", "not a readable safetensors file"),
        (struct.pack("<Q", 10) + b'{"a": nope', "not a readable safetensors file"),
        (with_metadata({}), "no 'lucidnft' header"),
        (with_metadata({"format": "pt"}), "no 'lucidnft' header"),
        (with_metadata({"lucidnft": '{"step": 3'}), "its header is not JSON"),
        (with_metadata({"lucidnft": "[1, 2]"}), "its header is a list"),
    ],
)
def test_foreign_and_damaged_headers_are_clear_errors(tmp_path, content, message):
    path = tmp_path / "f.safetensors"
    path.write_bytes(content)
    for load in (load_header, load_tensors):
        with pytest.raises(ValueError, match=message):
            load(path)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_tensors(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_header(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, torch.ones(1)])
def test_what_is_not_json_is_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(ValueError, match="cannot be stored as JSON"):
        save_tensors(tmp_path / "f", {"a": torch.ones(1)}, {"x": value})
    with pytest.raises(ValueError, match="cannot be stored as JSON"):
        save_json(tmp_path / "g", {"x": value})
    assert list(tmp_path.iterdir()) == []


def test_json_round_trip_and_damage(tmp_path):
    path = tmp_path / "state.json"
    value = {"step": 3, "best": 0.1, "names": ["a", None]}
    save_json(path, value)
    assert load_json(path) == value
    path.write_text(path.read_text()[:-4])
    with pytest.raises(ValueError, match=r"state\.json is not valid JSON"):
        load_json(path)


def test_a_folder_that_does_not_exist_is_a_write_error(tmp_path):
    with pytest.raises(CheckpointWriteError, match=r"cannot write .*nowhere/f: No such file.*MiB free there"):
        save_json(tmp_path / "nowhere" / "f", 1)


FULL_DISK = """
import resource, sys, torch
from lucidnft.checkpoint import CheckpointWriteError, save_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    save_tensors(sys.argv[1], {"a": torch.ones(100_000)}, {"version": 2})
except CheckpointWriteError as error:
    assert isinstance(error, OSError)
    print(error)
    sys.exit(7)
"""


def test_a_full_disk_keeps_the_old_file_and_leaves_no_remains(tmp_path):
    path = tmp_path / "policy.safetensors"
    save_tensors(path, {"a": torch.zeros(10)}, {"version": 1})
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 7, done.stderr
    assert str(path) in done.stdout
    assert "MiB free" in done.stdout
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["policy.safetensors"]


KILLED_WHILE_WRITING = """
import os, signal, sys, torch
from lucidnft.checkpoint import save_tensors
written = 0
real_fsync = os.fsync
def kill_instead_of_fsync(descriptor):
    os.ftruncate(descriptor, 1000)
    os.kill(os.getpid(), signal.SIGKILL)
os.fsync = kill_instead_of_fsync
save_tensors(sys.argv[1], {"a": torch.ones(100_000)}, {"version": 2})
"""


def test_a_kill_in_the_middle_of_a_save_keeps_the_old_file_and_the_next_save_cleans_up(tmp_path):
    path = tmp_path / "policy.safetensors"
    save_tensors(path, {"a": torch.zeros(10)}, {"version": 1})
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(path)], timeout=120)
    assert done.returncode == -9
    assert load_header(path) == {"version": 1}
    assert len(list(tmp_path.iterdir())) == 2, "the kill should have left a half-written temporary file"
    save_tensors(path, {"a": torch.ones(10)}, {"version": 3})
    assert load_header(path) == {"version": 3}
    assert [p.name for p in Path(tmp_path).iterdir()] == ["policy.safetensors"]
