"""Weight files of others: one file, a folder with one, an index with several; nothing guessed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lucidnft.checkpoint.released_files import load_released

TENSORS = {name: torch.full((2, 3), float(i)) for i, name in enumerate("abc")}


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    save_file({"a": TENSORS["a"]}, tmp_path / "model-1.safetensors")
    save_file({n: TENSORS[n] for n in "bc"}, tmp_path / "model-2.safetensors")
    names = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return tmp_path


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(torch.equal(found[n], TENSORS[n]) for n in found)


def test_one_file_by_its_name_or_its_folder(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "weights.safetensors")
    assert same(load_released(tmp_path / "weights.safetensors", expected=TENSORS))
    assert same(load_released(tmp_path))


def test_several_files_by_their_index(pieces: Path) -> None:
    save_file(TENSORS, pieces / "other.safetensors")  # not in the index
    assert same(load_released(pieces, expected=TENSORS))


def test_names_and_shapes_must_be_exactly_the_expected_ones(pieces: Path) -> None:
    expected = {"a": (2, 3), "b": (3, 2), "d": (1,)}
    with pytest.raises(ValueError, match=r"1 missing: d; 1 unexpected: c; 1 of another shape: b is \(2, 3\)"):
        load_released(pieces, expected=expected)


def test_what_is_missing_or_in_doubt_is_said(pieces: Path) -> None:
    save_file(TENSORS, pieces / "model-2.safetensors")
    with pytest.raises(ValueError, match="holds a in two pieces, one of them model-2"):
        load_released(pieces)
    (pieces / "model-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks model-2.safetensors, which model.safetensors.index"):
        load_released(pieces)
    index = pieces / "model.safetensors.index.json"
    for damaged in ("{}", "[]", '{"weight_map": {}}'):
        index.write_text(damaged)
        with pytest.raises(ValueError, match="no weight_map"):
            load_released(pieces)
    index.unlink()
    save_file(TENSORS, pieces / "model.fp16.safetensors")
    with pytest.raises(ValueError, match="model-1.safetensors, model.fp16.safetensors: which is meant"):
        load_released(pieces)
    (pieces / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no .safetensors file"):
        load_released(pieces / "empty")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_released(pieces / "absent.safetensors")
