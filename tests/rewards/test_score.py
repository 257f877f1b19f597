"""The scoring command: pairs by stem, no score that was not computed, and files that say the same as the reward."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from lucidnft.images import read_image, save_image
from lucidnft.rewards import build_reward
from lucidnft.rewards.score import main, pair_files, parse_rewards, summarise
from lucidnft.statistics import bootstrap_means
from tests.rewards.small_qwen3_vl import save_small_checkpoint


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """LR, SR and HR of three photographs of two sizes; LR has one more."""
    made = {name: tmp_path / name for name in ("lr", "sr", "hr")}
    for folder in made.values():
        folder.mkdir()
    for index, (height, width) in enumerate([(64, 64), (64, 96), (64, 64)]):
        draw = torch.Generator().manual_seed(index)
        hr = torch.nn.functional.interpolate(torch.rand((1, 3, 8, 8), generator=draw), size=(height, width))[
            0
        ]
        noise = 0.02 * (index + 1) * torch.randn(hr.shape, generator=draw)
        save_image(made["hr"] / f"p.{index}.png", hr)
        save_image(made["sr"] / f"p.{index}.png", (hr + noise).clamp(0, 1))
        save_image(made["lr"] / f"p.{index}.png", torch.nn.functional.avg_pool2d(hr, 4))
    save_image(made["lr"] / "unused.png", torch.zeros(3, 16, 16))
    return made


def arguments(folders: dict[str, Path], *names: str, **others: str | Path) -> list[str]:
    settings = {**{name: folders[name] for name in names}, **others}
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def rows_of(path: Path) -> dict[tuple[str, str], float]:
    with path.open(newline="") as file:
        return {(row["stem"], row["reward"]): float(row["score"]) for row in csv.DictReader(file)}


def test_scores_are_those_of_the_rewards_and_the_worst_are_drawn(folders, tmp_path, capsys):
    output = tmp_path / "out/scores.csv"
    main(arguments(folders, "sr", "lr", "hr", reward="lucid_consistency,psnr", output=output))
    found = rows_of(output)
    assert len(found) == 6
    for stem in ("p.0", "p.1", "p.2"):
        sr, lr, hr = (read_image(folders[name] / f"{stem}.png").rgb[None] for name in ("sr", "lr", "hr"))
        assert found[stem, "lucid_consistency"] == pytest.approx(
            float(build_reward("lucid_consistency")(sr, lr=lr))
        )
        assert found[stem, "psnr"] == pytest.approx(float(build_reward("psnr")(sr, hr=hr)))
    sheet = Image.open(output.with_name("scores-worst-psnr.png"))
    assert 3 * 256 < sheet.width < 4 * 256 and sheet.height > 3 * 256  # three columns, three rows
    with_map = Image.open(output.with_name("scores-worst-lucid_consistency.png"))
    assert 4 * 256 < with_map.width < 5 * 256
    printed = capsys.readouterr().out
    assert "worst: p.2, p.1, p.0 (" in printed and "95 % interval" in printed


def test_json_has_the_means_too_and_settings_reach_the_reward(folders, tmp_path):
    output = tmp_path / "scores.json"
    rewards = "[quality_net, {name: plain, type: lucid_consistency, head: null}]"
    main(arguments(folders, "sr", "lr", reward=rewards, output=output))
    record = json.loads(output.read_text())
    assert set(record["rewards"]) == {"quality_net", "plain"} and len(record["scores"]) == 6
    values = [row["score"] for row in record["scores"] if row["reward"] == "plain"]
    assert record["rewards"]["plain"]["mean"] == pytest.approx(sum(values) / 3)
    assert record["rewards"]["plain"]["low"] < record["rewards"]["plain"]["mean"]


def test_embedders_of_whole_images_get_their_map_by_occlusion(folders, tmp_path):
    checkpoint = save_small_checkpoint(tmp_path / "qwen3_vl")
    embedder = f"{{type: qwen3_vl, model_name_or_path: {checkpoint}, dtype: float32}}"
    reward = f"[{{type: lucid_consistency, head: null, embedder: {embedder}}}]"
    main(arguments(folders, "sr", "lr", reward=reward, output=tmp_path / "scores.csv"))
    with Image.open(tmp_path / "scores-worst-lucid_consistency.png") as sheet:
        assert 3 * 256 < sheet.width < 4 * 256
        red, green, _ = sheet.crop((2 * 256, 20, 3 * 256, sheet.height)).resize((1, 1)).getpixel((0, 0))
    assert red > green  # the map is over SR


def test_single_files_are_a_pair_whatever_their_names(folders, tmp_path, capsys):
    sr, lr = folders["sr"] / "p.0.png", folders["lr"] / "p.2.png"
    main(["--reward", "lr_fidelity", "--sr", str(sr), "--lr", str(lr), "--output", str(tmp_path / "one.csv")])
    assert list(rows_of(tmp_path / "one.csv")) == [("p.0", "lr_fidelity")]
    assert "needs 2 images" in capsys.readouterr().out


def test_an_image_without_a_score_is_named_and_the_others_are_written(folders, tmp_path):
    (folders["sr"] / "p.1.png").write_bytes(b"broken")
    save_image(folders["hr"] / "p.2.png", torch.zeros(3, 8, 8))
    output = tmp_path / "scores.csv"
    with pytest.raises(SystemExit) as caught:
        main(arguments(folders, "sr", "hr", reward="psnr", output=output))
    message = str(caught.value.code)
    assert message.startswith("score: 2 of 3 images have no score:")
    assert "p.1.png" in message and "p.2: " in message and "must agree" in message
    assert list(rows_of(output)) == [("p.0", "psnr")]


def test_lists_that_do_not_pair_are_refused(folders, tmp_path):
    (folders["lr"] / "p.0.png").unlink()
    with pytest.raises(ValueError, match=r"has no image for 1 of the 3 in .*sr: p\.0; files belong together"):
        pair_files(folders["sr"], folders["lr"], None)
    with pytest.raises(ValueError, match="all folders or all files"):
        pair_files(folders["sr"], folders["lr"] / "p.1.png", None)
    with pytest.raises(ValueError, match="--hr .* does not exist"):
        pair_files(folders["sr"], None, tmp_path / "nowhere")
    (folders["sr"] / "p.1.jpg").write_bytes((folders["sr"] / "p.1.png").read_bytes())
    with pytest.raises(ValueError, match=r"1 stems twice.*p\.1\.jpg, p\.1\.png"):
        pair_files(folders["sr"], None, None)


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ("psnr", "needs hr: add --hr"),
        ("quality_net,quality_net", "asked for twice"),
        ("qualty_net", "quality_net"),
        ("[{type: lucid_consistency, head: nowhere.safetensors}]", "nowhere.safetensors"),
        ("[{type: ", "score: "),
    ],
)
def test_what_cannot_be_scored_is_said_before_the_first_image(folders, tmp_path, reward, words):
    with pytest.raises(SystemExit) as caught:
        main(arguments(folders, "sr", "lr", reward=reward, output=tmp_path / "s.csv"))
    assert words in str(caught.value.code) and not (tmp_path / "s.csv").exists()


def test_the_interval_is_the_bootstraps_and_ties_keep_their_order():
    rows = [{"stem": f"s{i}", "r": float(i % 4)} for i in range(12)]
    found = summarise(rows, "r")
    means = bootstrap_means(torch.tensor([row["r"] for row in rows]).numpy(), 10_000, seed=0, key="r")
    assert found["low"] == pytest.approx(sorted(means)[249], abs=0.02)
    assert found["worst"][:4] == ["s0", "s4", "s8", "s1"] and len(found["worst"]) == 10


def test_the_module_runs_as_a_command(folders, tmp_path):
    command = [sys.executable, "-m", "lucidnft.rewards.score"]
    done = subprocess.run(
        [*command, *arguments(folders, "sr", reward="quality_net", output=tmp_path / "s.csv")],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "s.csv")) == 3 and "scores:" in done.stdout


def test_rewards_come_from_a_file_or_from_a_run_file(folders, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "plain: {type: lucid_consistency, head: null, weight: 2.0}\nquality: {type: quality_net}\n"
    )
    main(arguments(folders, "sr", "lr", reward=tmp_path / "mine.yaml", output=tmp_path / "a.csv"))
    rows = rows_of(tmp_path / "a.csv")
    assert {reward for _, reward in rows} == {"plain", "quality"}
    lr, sr = (read_image(folders[name] / "p.1.png").rgb[None] for name in ("lr", "sr"))
    plain = build_reward({"type": "lucid_consistency", "head": None})
    assert rows["p.1", "plain"] == pytest.approx(float(plain(sr, lr=lr)))
    run_file = Path(__file__).parents[2] / "configs/tiny/nft.yaml"
    assert list(parse_rewards(str(run_file))) == ["consistency", "quality", "lr_fidelity"]
    (tmp_path / "empty.yaml").write_text("[]")
    with pytest.raises(ValueError, match="holds no rewards"):
        parse_rewards(str(tmp_path / "empty.yaml"))
    with pytest.raises(ValueError, match="nowhere.yaml does not exist"):
        parse_rewards("nowhere.yaml")
