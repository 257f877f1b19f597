"""Does the evaluation give, image by image, what pyiqa gives when it is called by hand with the field's settings?

    python benchmarks/evaluation_proof.py --sr DIR --hr DIR [--metrics psnr,ssim] [--output FILE.json]

The field's settings: PSNR and SSIM on the Y of YCbCr (BT.601, 16 to 235), no border cropped, the saved 8-bit files.
Ends with status 1 when a score differs by more than 1e-6 of its value.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import pyiqa
import torch

from lucidnft.environment import git_commit
from lucidnft.evaluation.evaluator import evaluate
from lucidnft.evaluation.settings import parse_evaluation
from lucidnft.images import list_images

ON_LUMINANCE = {"test_y_channel": True, "color_space": "ycbcr"}
OPTIONS = {"psnr": ON_LUMINANCE, "ssim": ON_LUMINANCE}
TOLERANCE = 1e-6  # relative: scores are kept to 9 digits


def by_hand(metric: str, sr: Path, hr: Path) -> dict[str, float]:
    """Scores of pyiqa by stem, from the paths of the files; nothing of the library but the list of files."""
    call = pyiqa.create_metric(metric, device="cpu", **OPTIONS.get(metric, {}))
    references = {path.stem: path for path in list_images(hr)}
    with torch.no_grad():
        return {path.stem: float(call(str(path), str(references[path.stem]))) for path in list_images(sr)}


def by_evaluation(metrics: list[str], sr: Path, hr: Path) -> Mapping[str, Mapping[str, float]]:
    """metric -> stem -> score, as `python -m lucidnft.evaluation` computes them, without scores of earlier runs."""
    with tempfile.TemporaryDirectory() as folder:
        values = {
            "benchmark": "proof", "hr": str(hr), "methods": {"sr": str(sr)}, "metrics": metrics,
            "output_dir": folder, "device": "cpu",
        }  # fmt: skip
        result = evaluate(parse_evaluation(values, source="the command line"))
    if not result.complete:
        missing = [*(problem.line() for problem in result.problems), *(m.reason for m in result.unavailable)]
        raise SystemExit("not everything has a score:\n" + "\n".join(missing))
    return result.scores["sr"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sr", type=Path, required=True)
    parser.add_argument("--hr", type=Path, required=True)
    parser.add_argument("--metrics", default="psnr,ssim", help="full-reference metrics of pyiqa")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    metrics = args.metrics.split(",")
    ours = by_evaluation(metrics, args.sr, args.hr)
    record = {}
    print(f"{'metric':<10} {'n':>4} {'mean by hand':>14} {'mean here':>14} {'largest difference':>20}")
    for metric in metrics:
        hand = by_hand(metric, args.sr, args.hr)
        if hand.keys() != ours[metric].keys():
            raise SystemExit(f"{metric}: other images by hand than in the evaluation")
        largest = max(abs(ours[metric][stem] - value) / abs(value) for stem, value in hand.items())
        means = fmean(hand.values()), fmean(ours[metric].values())
        print(f"{metric:<10} {len(hand):>4} {means[0]:>14.6f} {means[1]:>14.6f} {largest:>20.1e}")
        record[metric] = {"n": len(hand), "by_hand": means[0], "here": means[1], "largest_relative": largest}
    if args.output:
        args.output.write_text(json.dumps({"commit": git_commit(), "metrics": record}, indent=2) + "\n")
    return int(any(row["largest_relative"] > TOLERANCE for row in record.values()))


if __name__ == "__main__":
    sys.exit(main())
