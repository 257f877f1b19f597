"""Golden curves: rewards and losses of the first steps of the tiny run files, as text.

`make golden` writes them anew; the diff is reviewed like code.  A refactor must leave them as they are.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import train
from lucidnft.metric_logger import read_metrics

FOLDER = Path(__file__).parent
CONFIGS = Path(__file__).parents[2] / "configs" / "tiny"
SHORT = [
    "train.max_train_steps=3",
    "train.mixed_precision=no",
    "train.device=cpu",
    "log.report_to=none",
    "log.log_steps=1",
    "log.save_steps=3",
    "eval.eval_steps=3",
]
# each run file with what makes three of its steps a matter of seconds
RUNS = {
    "nft": ["rollout.num_groups=2", "rollout.group_size=3", "data.crop_size=16", "data.num_val_images=2"],
    "flow_matching": [
        "train.batch_size=4", "data.crop_size=16", "data.num_val_images=2", "eval.num_inference_steps=2",
    ],
}  # fmt: skip
PREFIXES = ("reward/", "advantage/", "loss/", "eval/", "health/", "train/grad_norm")


def curves_of(name: str) -> str:
    """One line per step and metric, `step name value`, of a short run in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums depends on the number of threads
    try:
        with tempfile.TemporaryDirectory() as folder:
            train.main(
                ["--config", str(CONFIGS / f"{name}.yaml"), *SHORT, *RUNS[name], f"output_dir={folder}"]
            )
            rows = read_metrics(Path(folder) / name)
    finally:
        torch.set_num_threads(threads)
    lines = [
        f"{row['step']} {metric} {value:.8g}"
        for row in rows
        for metric, value in sorted(row.items())
        if metric.startswith(PREFIXES)
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write every curve."""
    for name in RUNS:
        (FOLDER / f"{name}.txt").write_text(curves_of(name))
        print(f"wrote {FOLDER / name}.txt")


if __name__ == "__main__":
    main()
