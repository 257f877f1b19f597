"""Does reinforcement raise every reward it trains on, seed after seed, without harm to real pairs?

    python benchmarks/finetune.py --config configs/tiny/nft.yaml [key=value ...] [--seeds 0 1 2] [--lr DIR.. --hr DIR..]

Runs train.py once per seed (a finished run of the same name is read, not repeated), takes the held-out
scores before and after from its records, and with --lr and --hr restores real pairs, which no run has
seen, with the base and with each tuned checkpoint, the same noise for both: rewards and guards.  Prints a
Markdown table with paired 95 % intervals and writes everything to --output.  Several folders may follow --lr
and --hr, in the same order.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

from lucidnft.config import load_config
from lucidnft.environment import git_commit
from lucidnft.images import list_images, read_image
from lucidnft.inference import restore
from lucidnft.inference.checkpoints import load_policy
from lucidnft.records import ImageBatch
from lucidnft.rewards import RewardSuite
from lucidnft.statistics import paired_difference
from lucidnft.training.comparison import ScoreComparison, compare_scores, read_scores
from lucidnft.training.guards import Guards

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAIR_METRICS = ("psnr_y", "ssim", "fsim")


def train(config_file: Path, seed: int, overrides: list[str]) -> Path:
    """The folder of a finished run with this seed."""
    name = f"{load_config(config_file, overrides).run_name}-seed{seed}"
    settings = [*overrides, f"seed={seed}", f"run_name={name}"]
    config = load_config(config_file, settings)
    run_dir = Path(config.output_dir) / name
    if not (run_dir / "report.html").is_file():
        command = [sys.executable, str(ROOT / "train.py"), "--config", str(config_file), *settings]
        subprocess.run(command, check=True)
    return run_dir


def score_pairs(
    checkpoint: str, suite: RewardSuite, lr_folders: list[Path], hr_folders: list[Path]
) -> dict[str, list[float]]:
    """Rewards, PSNR-Y, SSIM and FSIM of every pair, restored with noise keyed by the file's stem."""
    policy, guards = load_policy(checkpoint), Guards()
    scores: dict[str, list[float]] = {name: [] for name in (*suite.names, *PAIR_METRICS)}
    for lr_folder, hr_folder in zip(lr_folders, hr_folders, strict=True):
        for path in tqdm(list_images(lr_folder), desc=Path(checkpoint).parent.name or checkpoint):
            lr, hr = read_image(path).rgb[None], read_image(hr_folder / path.name).rgb[None]
            sr, pair = restore(policy, lr, keys=[path.stem]), ImageBatch(lr, (path.stem,), (0,), hr=hr)
            rewards = {n: v.flatten().tolist() for n, v in suite.score(sr[:, None], pair).by_name().items()}
            measured = {**guards.of_batch(sr, hr), **rewards}
            for name, values in scores.items():
                values += measured[name]
    return scores


def markdown(of_seeds: dict[int, list[ScoreComparison]]) -> str:
    """One line per score: its mean before, and for every seed the difference with its interval."""
    seeds = " | ".join(f"seed {seed}: difference" for seed in of_seeds)
    lines = [
        f"| score | kind | n | before | {seeds} |",
        "| --- | --- | ---: | ---: |" + " --- |" * len(of_seeds),
    ]
    for rows in zip(*of_seeds.values(), strict=True):
        cells = [row.cells() for row in rows]
        name, kind, n, before = cells[0][:4]
        changes = " | ".join(f"{difference} {interval}" for *_, difference, interval, _ in cells)
        lines.append(f"| {name} | {kind} | {n} | {before} | {changes} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lr", type=Path, nargs="+", default=[])
    parser.add_argument("--hr", type=Path, nargs="+", default=[])
    parser.add_argument("--output", type=Path, help="JSON; default benchmarks/results/<config>.json")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    if len(args.lr) != len(args.hr):
        parser.error(f"--lr names {len(args.lr)} folders, --hr {len(args.hr)}; they go in pairs")
    rewards = load_config(args.config, args.overrides).rewards
    suite = RewardSuite({name: settings.build() for name, settings in rewards.items()})
    base_pairs = score_pairs("base", suite, args.lr, args.hr) if args.lr else {}
    compared: dict[int, list[ScoreComparison]] = {}
    overrides = [
        text for text in args.overrides if not text.startswith("output_dir=")
    ]  # says nothing elsewhere
    record: dict[str, object] = {"scored_at": git_commit(), "overrides": overrides, "runs": {}}
    for seed in args.seeds:
        run_dir = train(args.config, seed, args.overrides)
        scores = read_scores(run_dir)
        of_seed = compare_scores(scores[0], scores[-1])
        checkpoint = sorted(run_dir.glob("checkpoint-*"))[-1]
        pairs = score_pairs(str(checkpoint), suite, args.lr, args.hr) if args.lr else {}
        for metric, values in pairs.items():
            paired = paired_difference(base_pairs[metric], values, key=f"pairs/{metric}")
            kind = "reward" if metric in suite.names else "guard"
            of_seed.append(ScoreComparison(f"{metric} on real pairs", kind, paired))
        compared[seed] = of_seed
        environment = json.loads((run_dir / "env.json").read_text())
        ran = {key: environment[key] for key in ("git_commit", "packages", "num_threads")}  # not this tree's
        record["runs"][seed] = {"ran": ran, "held_out": scores, "pairs": pairs}  # type: ignore[index]
    record["base_pairs"] = base_pairs
    record["table"] = markdown(compared)
    output = args.output or RESULTS / f"{args.config.stem}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n")
    print(record["table"])


if __name__ == "__main__":
    main()
