"""Score restored images that lie on the disk, with any rewards of the library and any metric of pyiqa.

    python -m lucidnft.rewards.score --reward lucid_consistency,musiq --lr LR --sr SR [--hr HR] --output scores.csv

LR, SR and HR are folders whose files belong together by their stems, or single files.  Writes one line per image
and reward (or JSON, by the extension), prints means with 95 % intervals, and draws the worst ten of each reward.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from lucidnft.checkpoint import save_json, save_text
from lucidnft.checkpoint.tensor_files import first_few
from lucidnft.images import UnreadableImageError, list_images, read_image, resize
from lucidnft.metric_logger import draw_grid
from lucidnft.rewards.base import Reward
from lucidnft.rewards.consistency import LucidConsistency
from lucidnft.rewards.places import by_occlusion, place_scores, redden
from lucidnft.rewards.registry import build_reward
from lucidnft.statistics import bootstrap_means

NUM_WORST = 10
THUMBNAIL = 256  # pixels a side


@dataclass(frozen=True)
class ScoredFiles:
    """A restored image and what it is compared with."""

    stem: str
    sr: Path
    lr: Path | None = None
    hr: Path | None = None


def pair_files(sr: Path, lr: Path | None, hr: Path | None) -> list[ScoredFiles]:
    """Files that belong together: by stem in folders, as given when they are files.

    Raises:
        ValueError: a folder has no images, two files of one stem, or lacks the partner of a restored image; or
            files and folders are mixed.
    """
    sides = {"sr": sr, "lr": lr, "hr": hr}
    given = {name: path for name, path in sides.items() if path is not None}
    for name, path in given.items():
        if not path.exists():
            raise ValueError(f"--{name} {path} does not exist")
    if len({path.is_dir() for path in given.values()}) > 1:
        raise ValueError(
            f"--sr, --lr and --hr have to be all folders or all files, got {', '.join(map(str, given.values()))}"
        )
    if not sr.is_dir():
        return [ScoredFiles(sr.stem, sr, lr, hr)]
    found = {name: _by_stem(path) for name, path in given.items()}
    for name, files in found.items():
        missing = [stem for stem in found["sr"] if stem not in files]
        if missing:
            raise ValueError(
                f"--{name} {given[name]} has no image for {len(missing)} of the {len(found['sr'])} in {sr}: "
                f"{', '.join(missing[:3])}{', ...' * (len(missing) > 3)}; files belong together by their stems"
            )
    return [
        ScoredFiles(stem=stem, **{name: files[stem] for name, files in found.items()}) for stem in found["sr"]
    ]


def _by_stem(folder: Path) -> dict[str, Path]:
    files = list_images(folder)
    twice = [stem for stem, count in Counter(f.stem for f in files).items() if count > 1]
    if twice:
        names = ", ".join(f.name for f in files if f.stem == twice[0])
        raise ValueError(f"{folder} has {len(twice)} stems twice, so their partners cannot be told: {names}")
    return {f.stem: f for f in files}


def score_files(
    rewards: Mapping[str, Reward], pairs: Sequence[ScoredFiles], device: torch.device | str = "cpu"
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Rows {"stem", reward: score, ...} of the images all rewards could score, and (stem, reason) of the others."""
    rows: list[dict[str, Any]] = []
    failed = []
    for pair in tqdm(pairs, desc="score", unit="image"):
        try:
            sr = _read(pair.sr).to(device)
            lr, hr = (None if path is None else _read(path).to(device) for path in (pair.lr, pair.hr))
            row = {name: float(reward(sr, lr=lr, hr=hr)) for name, reward in rewards.items()}
        except (UnreadableImageError, ValueError) as error:
            failed.append((pair.stem, str(error)))
        else:
            rows.append({"stem": pair.stem, **row})
    return rows, failed


def _read(path: Path) -> Tensor:
    return read_image(path).rgb[None]


def summarise(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Mean of a reward over n images, its 95 % bootstrap interval (none for one image), and the worst stems."""
    values = np.array([row[name] for row in rows])
    ends = (
        np.quantile(bootstrap_means(values, 10_000, seed=0, key=name), [0.025, 0.975])
        if len(values) > 1
        else [None] * 2
    )
    low, high = (None if end is None else float(end) for end in ends)
    worst = [str(rows[i]["stem"]) for i in np.argsort(values, kind="stable")[:NUM_WORST]]
    return {"n": len(values), "mean": float(values.mean()), "low": low, "high": high, "worst": worst}


def write_scores(path: Path, rows: Sequence[Mapping[str, Any]], summaries: Mapping[str, Any]) -> None:
    """CSV with the columns stem, reward, score; or JSON with the summaries too.  Replaces a file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    long = [(row["stem"], name, row[name]) for row in rows for name in summaries]
    if path.suffix.lower() == ".json":
        images = [{"stem": stem, "reward": name, "score": score} for stem, name, score in long]
        save_json(path, {"rewards": summaries, "scores": images})
    else:
        text = io.StringIO()
        csv.writer(text).writerows([("stem", "reward", "score"), *long])
        save_text(path, text.getvalue())


def draw_worst(path: Path, pairs: Sequence[ScoredFiles], worst: Sequence[str], reward: Reward) -> None:
    """A PNG with a row for each of the worst: LR, SR and HR, as far as given, shrunk to fit a square.

    For LucidConsistency one more: SR, the redder the less faithful.
    """
    by_stem = {pair.stem: pair for pair in pairs}
    captions = [name for name in ("lr", "sr", "hr") if getattr(pairs[0], name) is not None]
    rows = []
    for stem in worst:
        images = {caption: _read(getattr(by_stem[stem], caption)) for caption in captions}
        shown = list(images.values())
        if isinstance(reward, LucidConsistency):
            shown.append(_where_unfaithful(reward, images["lr"], images["sr"]))
        rows.append(torch.stack([_thumbnail(image) for image in shown]))
    titles = [caption.upper() for caption in captions]
    titles += ["red: unfaithful"] if isinstance(reward, LucidConsistency) else []
    draw_grid(torch.stack(rows), titles).save(path)


def _where_unfaithful(reward: LucidConsistency, lr: Tensor, sr: Tensor) -> Tensor:
    """(1, 3, H, W): SR, red where it is unfaithful, full red at the worst place of this image."""
    best = 0.0 if by_occlusion(reward) else 1.0
    faults = (best - place_scores(reward, lr, sr)).clamp_min(0)
    found = F.interpolate(faults[None, None], size=sr.shape[2:], mode="bilinear")[0, 0]
    return redden(sr.cpu(), 0.7 * found / found.max().clamp_min(1e-6))


def _thumbnail(image: Tensor) -> Tensor:
    """(1, 3, H, W) -> (3, 256, 256): the whole image, on white."""
    height, width = image.shape[2:]
    scale = THUMBNAIL / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    fitted = resize(image, size)[0]
    return F.pad(fitted, (0, THUMBNAIL - size[1], 0, THUMBNAIL - size[0]), value=1.0)


def parse_rewards(text: str) -> dict[str, Reward]:
    """Rewards by name, of "name,name", a YAML list of names and {type: ..., setting: ...} sections, or a .yaml file.

    A file holds `name: {type: ..., ...}` as the rewards of a run file do, or is a run file.
    """
    if text.endswith((".yaml", ".yml")):
        return _rewards_of_file(Path(text))
    listed = yaml.safe_load(text) if text.lstrip().startswith(("[", "{")) else text.split(",")
    wanted = listed if isinstance(listed, list) else [listed]
    rewards: dict[str, Reward] = {}
    for item in wanted:
        name = str(item.get("name", item.get("type"))) if isinstance(item, dict) else str(item).strip()
        if name in rewards:
            raise ValueError(
                f"reward '{name}' is asked for twice; give one of them another name: {{name: ..., type: ...}}"
            )
        rewards[name] = build_reward(
            {k: v for k, v in item.items() if k != "name"} if isinstance(item, dict) else name
        )
    return rewards


def _rewards_of_file(path: Path) -> dict[str, Reward]:
    if not path.is_file():
        raise ValueError(f"--reward {path} does not exist")
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    sections = found.get("rewards", found) if isinstance(found, dict) else None
    if not sections or not all(isinstance(section, dict) for section in sections.values()):
        raise ValueError(
            f"--reward {path} holds no rewards; expected lines like quality: {{type: quality_net}}"
        )
    return {str(name): build_reward(section) for name, section in sections.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """The command.  Ends with status 1 and one message when it cannot start, or when an image failed."""
    parser = argparse.ArgumentParser(
        prog="python -m lucidnft.rewards.score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--reward",
        required=True,
        help="names, comma-separated; YAML: [{type: ..., head: ...}]; or a .yaml file",
    )
    parser.add_argument("--sr", type=Path, required=True, help="restored images: a folder or a file")
    parser.add_argument("--lr", type=Path, help="their low-resolution inputs")
    parser.add_argument("--hr", type=Path, help="their references")
    parser.add_argument("--output", type=Path, required=True, help="scores.csv or scores.json")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    try:
        pairs = pair_files(args.sr, args.lr, args.hr)
        rewards = {name: reward.to(args.device) for name, reward in parse_rewards(args.reward).items()}
        given = {name for name in ("lr", "hr") if getattr(args, name) is not None}
        for name, reward in rewards.items():
            if missing := sorted(reward.card.needs - given):
                how = "set its prompt" if "prompt" in missing else f"add --{' and --'.join(missing)}"
                raise ValueError(f"reward '{name}' needs {' and '.join(missing)}: {how}")
    except (ValueError, OSError, ImportError, RuntimeError, yaml.YAMLError) as error:
        sys.exit(f"score: {error}")
    rows, failed = score_files(rewards, pairs, args.device)
    if rows:
        summaries = {name: summarise(rows, name) for name in rewards}
        write_scores(args.output, rows, summaries)
        print(f"{'reward':<24}{'n':>6}{'mean':>12}   95 % interval")
        for name, found in summaries.items():
            interval = (
                "needs 2 images" if found["low"] is None else f"[{found['low']:.4f}, {found['high']:.4f}]"
            )
            print(f"{name:<24}{found['n']:>6}{found['mean']:>12.4f}   {interval}")
            sheet = args.output.with_name(f"{args.output.stem}-worst-{name.replace('/', '-')}.png")
            draw_worst(sheet, pairs, found["worst"], rewards[name])
            print(f"  worst: {first_few(found['worst'])} ({sheet})")
        print(f"scores: {args.output}")
    if failed:
        shown = "".join(f"\n  {stem}: {reason}" for stem, reason in failed)
        sys.exit(f"score: {len(failed)} of {len(pairs)} images have no score:{shown}")


if __name__ == "__main__":
    main()
