"""Released files become safetensors once: the same tensors for their readers, and nothing is executed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from lucidnft.backbones.lucidflux_weights import (
    read_lucidflux_file,
    read_prompt_embeddings,
    read_swinir_file,
)
from lucidnft.checkpoint import CheckpointWriteError, load_header
from lucidnft.checkpoint import convert as module
from lucidnft.checkpoint.convert import convert, main
from lucidnft.checkpoint.released_files import read_released_file

A, B = torch.arange(6.0).view(2, 3), torch.arange(4).to(torch.bfloat16)


class Hostile:
    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trap),)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new.safetensors"


def saved(folder: Path, contents: object, name: str = "old.pth") -> Path:
    torch.save(contents, folder / name)
    return folder / name


def test_lucidflux_reads_the_same_from_both(tmp_path: Path, target: Path) -> None:
    names = ("condition_lq", "condition_ldr", "modulation_lq", "modulation_ldr", "connector")
    source = saved(tmp_path, {name: {"in.weight": A + i, "b": B} for i, name in enumerate(names)})
    convert(source, target)
    before, after = read_lucidflux_file(source), read_lucidflux_file(target)
    assert list(before) == list(names) and set(after) == set(names)
    for part in names:
        assert before[part].keys() == after[part].keys()
        for name, value in before[part].items():
            assert value.dtype == after[part][name].dtype and torch.equal(value, after[part][name])


def test_the_pre_restorer_and_the_prompt_read_the_same_from_both(tmp_path: Path, target: Path) -> None:
    source = saved(tmp_path, {"state_dict": {"module.conv.weight": A}, "epoch": 3}, "swinir.ckpt")
    convert(source, target)
    assert torch.equal(read_swinir_file(target)["conv.weight"], read_swinir_file(source)["conv.weight"])
    assert load_header(target) == {"converted_from": "swinir.ckpt", "others": {"epoch": 3}}
    prompt = saved(tmp_path, {"txt": A[None], "vec": B[None], "prompt": "restore it"}, "prompt.pt")
    convert(prompt, tmp_path / "prompt.safetensors")
    read = [read_prompt_embeddings(f, 3, 4) for f in (prompt, tmp_path / "prompt.safetensors")]
    assert torch.equal(read[0].text, read[1].text) and torch.equal(read[0].pooled, read[1].pooled)
    assert load_header(tmp_path / "prompt.safetensors")["others"] == {"prompt": "restore it"}


def test_views_of_one_tensor_are_stored_each(tmp_path: Path, target: Path) -> None:
    convert(saved(tmp_path, {"a": A, "transposed": A.T}), target)
    assert torch.equal(read_released_file(target)["transposed"], A.T)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"a": A, "optimizer": {"states": [A]}}, "optimizer.states is a list, expected a tensor"),
        ({"a": A, "optimizer": {0: A}}, "an entry of optimizer. is called 0"),
        ({"a.b": A, "a": {"b": B}}, "two entries that would both be called a.b"),
        ({"epoch": 1}, "holds no tensors"),
        ([A], "holds a list"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(
    tmp_path: Path, target: Path, contents: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(saved(tmp_path, contents)), str(target)]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert os.listdir(tmp_path) == ["old.pth"]


@pytest.mark.parametrize("plain_pickle", [False, True])
def test_a_hostile_file_is_not_executed(
    tmp_path: Path, target: Path, plain_pickle: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = {"a": A, "b": Hostile(tmp_path / "trap")}
    source = tmp_path / "old.pth"
    if plain_pickle:
        source.write_bytes(pickle.dumps({"b": Hostile(tmp_path / "trap")}))
    else:
        torch.save(contents, source)
    assert main([str(source), str(target)]) == 1
    assert "never executed" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["old.pth"]


def test_an_existing_target_is_left_alone(tmp_path: Path, target: Path) -> None:
    source = saved(tmp_path, {"a": A})
    target.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="exists already"):
        convert(source, target)
    assert target.read_bytes() == b"mine"
    with pytest.raises(ValueError, match="must end with .safetensors"):
        convert(source, tmp_path / "new.pth")


def test_a_full_disk_leaves_nothing(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    source = saved(tmp_path, {"a": A})
    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(CheckpointWriteError, match="No space left"):
        convert(source, target)
    assert os.listdir(tmp_path) == ["old.pth"]
