"""lucidnft-download: what it says, what it fetches, and that nothing half-fetched ever counts as there."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import sample
from lucidnft import download
from lucidnft.checkpoint import save_tensors
from lucidnft.checkpoint.required_files import describe_required, missing_files, required_files
from lucidnft.config import load_config
from lucidnft.download import main
from lucidnft.inference.checkpoints import POLICY_FORMAT
from tests.small_dit4sr import save_small_dit4sr, small_dit4sr
from tests.small_hub import SmallHub, files_in
from train import main as train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallHub:
    """A hub with a small DiT4SR in two repositories and the file of its text in a third."""
    monkeypatch.chdir(tmp_path)
    saved = tmp_path / "saved"
    saved.mkdir()
    save_small_dit4sr(saved)
    hub = SmallHub(tmp_path, monkeypatch)
    hub.repositories = {
        "some/sd3": {**files_in(saved / "sd3"), "text_encoder/model.safetensors": b"not needed"},
        "some/dit4sr": {**files_in(saved / "dit4sr", "q/"), "README.md": b"words"},
        "chaofengc/IQA-PyTorch-Weights": {"musiq_koniq_ckpt-e95806b9.pth": b"weights"},
    }
    return hub


@pytest.fixture
def run_file(hub: SmallHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    settings: dict[str, Any] = {
        "task": "nft",
        "model": {
            "type": "dit4sr", "model_name_or_path": "some/sd3", "transformer_path": "some/dit4sr/q",
            "lr_key": "noise", "dtype": "float32",
        },
        "data": {"type": "lr_folder"},
        "rewards": {"musiq": {"type": "iqa", "metric": "musiq"}},
        "train": {"device": "cpu"},
    }  # fmt: skip
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return "run.yaml"


def test_what_is_missing_is_fetched_to_where_it_is_expected(
    run_file: str, hub: SmallHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config: Any = load_config(run_file)
    assert len(missing_files(config)) == 4
    assert main([run_file, "--yes"]) == 0
    assert missing_files(config) == ()
    assert sorted(hub.fetched) == [
        "musiq_koniq_ckpt-e95806b9.pth", "q/model.safetensors", "transformer/config.json",
        "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    assert os.listdir(tmp_path / "torch" / "hub" / "pyiqa") == ["musiq_koniq_ckpt-e95806b9.pth"]
    assert config.model.build().fingerprint == small_dit4sr("noise").fingerprint
    hub.fetched.clear()
    capsys.readouterr()
    assert main([run_file]) == 0 and hub.fetched == []  # nothing to ask either
    assert capsys.readouterr().out.count("present") == 4


def test_listing_fetches_nothing_and_overrides_count(
    run_file: str, hub: SmallHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([run_file, "--list", "rewards={fidelity: {type: lr_fidelity}}"]) == 0
    out = capsys.readouterr().out
    assert out.count("missing") == 3 and "musiq" not in out and hub.fetched == []
    assert main([run_file, "--list", "model.transformer_pth=x"]) == 1
    assert "model.transformer_pth: unknown key" in capsys.readouterr().err


def test_the_module_is_the_command_too(
    run_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["lucidnft-download", run_file, "--list"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(Path(download.__file__)), run_name="__main__")
    assert end.value.code == 0 and capsys.readouterr().out.count("missing") == 4


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("", 1)])
def test_it_asks_before_it_fetches(
    run_file: str, hub: SmallHub, monkeypatch: pytest.MonkeyPatch, answer: str, status: int
) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert main([run_file]) == status
    assert bool(hub.fetched) == (status == 0)


def test_where_nobody_can_answer_it_says_so(
    run_file: str, hub: SmallHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
    assert main([run_file]) == 1
    assert "give --yes" in capsys.readouterr().err and hub.fetched == []


def refused(run_file: str, capsys: pytest.CaptureFixture[str], status: int = 1) -> str:
    assert main([run_file, "--yes"]) == status
    error = capsys.readouterr().err.strip()
    assert error.startswith("lucidnft-download: ") and "\n" not in error
    return error


@pytest.mark.parametrize(
    ("token", "said"), [(None, "`hf auth login`"), ("hf_x", "logged in as who accepted")]
)
def test_a_gated_repository_is_named_before_anything_is_fetched(
    run_file: str, hub: SmallHub, token: str | None, said: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    hub.gated = {"some/dit4sr"}
    error = refused(run_file, capsys)
    assert "some/dit4sr" in error and "accept" in error and said in error
    assert "https://huggingface.co/some/dit4sr" in error
    assert hub.fetched == []


def test_without_a_network_there_is_one_message(
    run_file: str, hub: SmallHub, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    hub.offline = OSError(-2, "Name or service not known")
    assert "no connection to its server ([Errno -2] Name or service" in refused(run_file, capsys)
    hub.offline = OfflineModeIsEnabled("offline")
    assert "HF_HUB_OFFLINE=1 is set" in refused(run_file, capsys)


def test_errors_of_the_real_functions_are_explained_too(
    run_file: str, hub: SmallHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub._real)
    error = refused(run_file, capsys)  # tests run with HF_HUB_OFFLINE=1; the first file is a single one
    assert "HF_HUB_OFFLINE=1 is set" in error or "no connection" in error


def test_a_repository_or_a_file_that_is_not_there(
    run_file: str, hub: SmallHub, capsys: pytest.CaptureFixture[str]
) -> None:
    del hub.repositories["some/sd3"]["transformer/config.json"]
    assert "transformer/config.json is not in the repository" in refused(run_file, capsys)
    hub.repositories["some/sd3"] = {"transformer/config.json": b"{}"}
    assert "some/sd3 has no vae/*" in refused(run_file, capsys)
    del hub.repositories["some/sd3"]
    error = refused(run_file, capsys)
    assert "no such repository" in error and "correct model.model_name_or_path" in error
    assert hub.fetched == []


def test_what_was_stopped_is_still_missing_and_goes_on(
    run_file: str, hub: SmallHub, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(name: str) -> None:
        if name.endswith(".safetensors"):
            raise KeyboardInterrupt

    hub.fault = stop
    assert "the same command continues" in refused(run_file, capsys)
    assert len(missing_files(load_config(run_file))) == 3  # transformer/config.json had arrived
    hub.fault = None
    assert main([run_file, "--yes"]) == 0
    assert missing_files(load_config(run_file)) == ()


def test_a_file_that_arrives_cut_short_is_refused_and_one_in_the_cache_is_fetched_again(
    run_file: str, hub: SmallHub, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = hub.repositories["some/dit4sr"]["q/model.safetensors"]
    hub.repositories["some/dit4sr"]["q/model.safetensors"] = whole[:-1]
    assert "q/*.safetensors was fetched but is incomplete" in refused(run_file, capsys)
    hub.repositories["some/dit4sr"]["q/model.safetensors"] = whole
    assert main([run_file, "--yes"]) == 0
    assert (hub.snapshot("some/dit4sr") / "q" / "model.safetensors").read_bytes() == whole


def test_a_single_file_reaches_its_place_only_whole(
    run_file: str, hub: SmallHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, place = "musiq_koniq_ckpt-e95806b9.pth", tmp_path / "torch" / "hub" / "pyiqa"
    hub.repositories["chaofengc/IQA-PyTorch-Weights"][name] = b""
    assert "arrived damaged" in refused(run_file, capsys)
    assert not (place / name).exists()

    def full(name: str) -> None:
        raise OSError(28, "No space left on device")

    hub.fault = full
    assert "cannot be written: No space left on device" in refused(run_file, capsys)


def test_a_disk_without_room_is_found_before_anything_is_fetched(
    run_file: str, hub: SmallHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [len(hub.repositories["some/dit4sr"]["q/model.safetensors"])]
    sizes += [len(v) for n, v in hub.repositories["some/sd3"].items() if not n.startswith("text")]
    sizes += [len(b"weights")]
    usage = SimpleNamespace(free=sum(sizes) - 1)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    assert "are to be fetched, but the disk of" in refused(run_file, capsys)
    assert hub.fetched == []
    half = hub.snapshot("some/sd3").parent.parent / "blobs" / "half.incomplete"
    half.parent.mkdir()
    half.write_bytes(b"1")  # what has arrived of a file that was stopped needs no more room
    assert main([run_file, "--yes"]) == 0


def test_a_file_of_another_server_comes_by_its_address(
    run_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    addresses = []

    def bring(url: str, target: str) -> None:
        addresses.append(url)
        Path(target).write_bytes(b"clip")

    monkeypatch.setattr("torch.hub.download_url_to_file", bring)
    reward = "rewards={q: {type: iqa, metric: clipiqa}}"
    assert main([run_file, reward, "--yes"]) == 0
    assert addresses[0].startswith("https://openaipublic.azureedge.net/") and len(addresses) == 1
    assert files_in(tmp_path / "torch" / "hub" / "clip") == {"RN50.pt": b"clip"}


def test_files_of_one_s_own_are_left_to_the_user(
    run_file: str, hub: SmallHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([run_file, "model.text_embeddings=mine.safetensors", "--yes"]) == 1
    assert "nothing fetches mine.safetensors: put it there, or change model.text_embeddings" in (
        capsys.readouterr().err
    )
    assert len(hub.fetched) == 5


def test_train_py_without_the_files_prints_that_list_and_starts_nothing(
    run_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*args: object) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr("train.build_accelerator", nothing)
    with pytest.raises(SystemExit) as end:
        train(["--config", run_file, "seed=3"])
    said = str(end.value.code)  # the interpreter prints it and ends with status 1
    assert said.startswith("train.py: run.yaml needs files of which 4 are not here or not whole:\n")
    assert describe_required(required_files(load_config(run_file))) in said
    assert said.endswith("fetch them with: lucidnft-download run.yaml seed=3")
    assert not (tmp_path / "runs").exists()


def policy_file(folder: Path, model: dict[str, Any]) -> Path:
    header = {"format": POLICY_FORMAT, "backbone": model, "base_fingerprint": "x", "config": {"seed": 0}}
    save_tensors(folder / "policy.safetensors", {"a": torch.zeros(1)}, header)
    return folder / "policy.safetensors"


def test_sample_py_without_the_base_says_how_to_fetch_it_from_the_policy_alone(
    run_file: str, hub: SmallHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = policy_file(tmp_path, load_config(run_file).model_dump(mode="json")["model"])
    torch.manual_seed(0)
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    arguments = ["-i", str(tmp_path / "photo.png"), "-o", str(tmp_path / "out"), "--checkpoint", str(policy)]
    assert sample.main([*arguments, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert f"sample.py: {policy}: its base needs files of which 3 are not here or not whole:\n" in error
    assert f"fetch them with: lucidnft-download {policy}\n" in error and not (tmp_path / "out").exists()
    assert main([str(policy), "--yes"]) == 0
    assert "musiq_koniq_ckpt-e95806b9.pth" not in hub.fetched and len(hub.fetched) == 4
    assert main([str(tmp_path / "nowhere.safetensors"), "--list"]) == 1
    assert main([str(policy), "seed=1", "--list"]) == 1
    assert "is no run file: leave seed=1 out" in capsys.readouterr().err


def test_errors_of_the_connection_itself_are_explained(
    run_file: str, hub: SmallHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import errors

    def broken(*args: object, **options: object) -> None:
        raise errors.HTTPError("connection reset")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", broken)
    assert "no connection to its server (connection reset)" in refused(run_file, capsys)
