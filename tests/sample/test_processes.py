"""Several processes, shards, and a killed run: the files and pixels of one undisturbed process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lucidnft
from lucidnft.sample import command, maps
from lucidnft.sample.arguments import SHIPPED_MAPS, parse_args
from lucidnft.sample.command import main
from lucidnft.sample.manifest import read_manifests
from lucidnft.sample.processes import Processes
from lucidnft.sample.setup import prepare
from tests.small_backbone import small_backbone

ROOT = Path(lucidnft.__file__).resolve().parents[1]
ENVIRONMENT = {
    **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1",
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    small_backbone().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Nine files of three sizes, so that batches are mixed and cut; one of them damaged."""
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for number in range(9):
        size = [(5, 7), (6, 4), (8, 8)][number % 3]
        Image.fromarray(draw.integers(0, 256, (*size, 3)).astype(np.uint8)).save(folder / f"{number}.png")
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:60])
    return folder


def arguments(photos, out, base, *more):
    return ["--input", str(photos), "--output_dir", str(out), "--checkpoint", str(base), "--device", "cpu",
            "--num_inference_steps", "2", "--batch_size", "2", *more]  # fmt: skip


@pytest.fixture(scope="module")
def alone(photos, base, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    torch.set_num_threads(1)
    assert main(arguments(photos, out, base)) == 1
    return outputs(out)


def outputs(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def test_two_launched_processes_make_the_pixels_of_one(photos, base, alone, tmp_path):
    out = tmp_path / "out"
    launcher = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    ]
    done = subprocess.run(
        [sys.executable, *launcher, str(ROOT / "sample.py"), *arguments(photos, out, base, "--metrics", "lr_fidelity")],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "8 restored, 0 skipped, 1 failed" in done.stdout and done.stdout.count("restored,") == 1
    assert "4.png: " in done.stderr
    assert outputs(out) == alone
    by_process = [
        len(path.read_text().splitlines()) - 1 for path in sorted(out.glob("manifest.process-*.jsonl"))
    ]
    assert len(by_process) == 2 and min(by_process) >= 3 and sum(by_process) == 9
    assert len((out / "metrics.csv").read_text().splitlines()) == 1 + 8


def test_shards_make_the_pixels_of_the_whole(photos, base, alone, tmp_path):
    counts = []
    for number in (1, 2, 3):
        main(arguments(photos, tmp_path / "out", base, "--shard", f"{number}/3"))
        counts.append(len(outputs(tmp_path / "out")))
    assert counts[0] < counts[1] < counts[2] == 8
    assert outputs(tmp_path / "out") == alone


def test_shards_that_saw_other_files_say_so(photos, base, tmp_path, capsys):
    """Each cuts the list for itself: with another list, some files would be restored by none."""
    photos = Path(shutil.copytree(photos, tmp_path / "photos"))
    main(arguments(photos, tmp_path / "out", base, "--shard", "1/2"))
    (photos / "new.png").write_bytes((photos / "0.png").read_bytes())
    main(arguments(photos, tmp_path / "out", base, "--shard", "2/2"))
    assert "shard-1-of-2 saw other input files than this shard" in capsys.readouterr().err
    main(arguments(photos, tmp_path / "out", base, "--shard", "1/2", "--skip_existing"))
    assert "saw other input files" not in capsys.readouterr().err


def test_processes_that_saw_other_files_do_not_start(photos, base, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Processes, "gather", lambda self, mine: [mine, (None, "other files")])
    assert main(arguments(photos, tmp_path / "out", base)) == 2
    assert "the input changed while the processes looked at it" in capsys.readouterr().err


def test_a_killed_run_goes_on_where_it_stopped(photos, base, alone, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "sample.py"), *arguments(photos, out, base)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob("*.png")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = outputs(out)
    assert 1 <= len(before) < 8, "the run ended before it could be killed"
    assert main(arguments(photos, out, base, "--skip_existing")) == 1
    assert outputs(out) == alone
    restored = [line["output"] for line in read_manifests(out) if line.get("status") == "restored"]
    assert len(restored) == len(set(restored)) >= 8 - len(before)


def test_a_cut_off_record_is_begun_on_a_new_line(photos, base, tmp_path):
    out = tmp_path / "out"
    main(arguments(photos / "0.png", out, base))
    with (out / "manifest.jsonl").open("a") as file:
        file.write('{"run": "12')
    main(arguments(photos / "1.png", out, base))
    lines = (out / "manifest.jsonl").read_text().splitlines()
    with pytest.raises(json.JSONDecodeError):
        json.loads(lines[2])
    assert [line.get("status") for line in read_manifests(out)] == [None, "restored", None, "restored"]


def test_the_record_says_how_and_with_what(photos, base, tmp_path):
    out = tmp_path / "out"
    main(arguments(photos, out, base, "--seed", "7", "--upscale", "2"))
    run, *files = read_manifests(out)
    assert run["settings"]["seed"] == 7 and run["settings"]["upscale"] == 2
    assert run["settings"]["weights"] == small_backbone().fingerprint
    assert (
        run["packages"]["torch"] == torch.__version__.partition("+")[0]
        and run["lucidnft"] == lucidnft.__version__
    )
    by_name = {Path(line["source"]).name: line for line in files}
    assert len(by_name) == 9 and all(line["run"] == run["run"] for line in files)
    assert by_name["0.png"]["input_size"] == [5, 7] and by_name["0.png"]["output_size"] == [10, 14]
    assert by_name["4.png"]["status"] == "failed" and "truncated" in by_name["4.png"]["reason"]


def test_outputs_made_with_other_settings_are_told_apart(photos, base, tmp_path, capsys):
    out = tmp_path / "out"
    main(arguments(photos / "0.png", out, base))
    main(arguments(photos / "0.png", out, base, "--skip_existing"))
    assert "were made with" not in capsys.readouterr().err
    main(arguments(photos, out, base, "--skip_existing", "--seed", "3", "--fidelity", "1"))
    error = capsys.readouterr().err
    assert "were made with seed 0 (now 3); fidelity 0.0 (now 1.0)" in error


class OneOfTwo(Processes):
    """A process whose neighbour says what it is told to say."""

    def gather(self, mine):
        first, _ = mine  # what hindered it; or, in the end, what it restored
        return [mine, ("", None)] if first is None else [mine, mine]


def test_no_process_goes_on_when_another_could_not_start(photos, base, tmp_path):
    args = parse_args(arguments(photos, tmp_path / "out", base))
    assert command._run(args, OneOfTwo(0, 2, 0)) == 2
    assert outputs(tmp_path / "out") == {}


def test_only_the_first_process_loads_what_looks_at_the_outputs(photos, base, tmp_path):
    args = parse_args(arguments(photos, tmp_path / "out", base, "--metrics", "lr_fidelity", "--save_map"))
    first, second = (prepare(args, Processes(index, 2, index)).checks for index in (0, 1))
    assert first.metrics == ("lr_fidelity",) and len(first.maps) == 3
    assert not second.metrics and not second.maps


def test_the_maps_of_the_bare_option_are_those_that_ship():
    assert tuple(SHIPPED_MAPS.split(",")) == maps.SHIPPED_MAPS


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    devices = [str(Processes(i, 4, i).device("auto")) for i in range(4)]
    assert devices == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert str(Processes(1, 2, 1).device("cpu")) == "cpu"
    assert str(Processes().device("cuda:1")) == "cuda:1"
    with pytest.raises(ValueError, match="one GPU for 2 processes"):
        Processes(0, 2, 0).device("cuda:1")
