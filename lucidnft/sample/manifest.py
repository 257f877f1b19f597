"""The record of what was restored, how and with what: one JSON object a line, in the output folder.

A line is added as soon as a file is done, so the record survives being killed.  Every process has a file of its own.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lucidnft.inference.folder import FileRecord

MANIFEST = "manifest.jsonl"

PIXEL_SETTINGS = (
    "weights", "seed", "upscale", "width", "height", "fit", "process_size", "num_inference_steps", "solver", "fidelity",
    "align_method", "align_to", "tile_size", "tile_overlap", "dtype", "num_samples", "select_by", "bit_depth",
    "quality",
)  # fmt: skip
"""Settings that change pixels: what --skip_existing compares with those of the outputs that are there."""


class Manifest:
    """Appends to a file of the output folder; a context manager."""

    def __init__(
        self, output_dir: Path, settings: Mapping[str, Any], facts: Mapping[str, Any], part: str = ""
    ) -> None:
        """Start a run's record.

        Args:
            settings: of the command, by name; and "weights", what identifies them.
            facts: versions, device and the like.
            part: which of several processes or shards this is; "" for one alone.
        """
        self.run = uuid.uuid4().hex[:12]
        self.path = output_dir / (f"manifest.{part}.jsonl" if part else MANIFEST)
        cut_off = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        self._file = self.path.open("a", encoding="utf-8", errors="backslashreplace")
        if cut_off:  # a run was killed while it wrote
            self._file.write("\n")
        self._lock = threading.Lock()
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._add({"run": self.run, "started": started, "settings": dict(settings), **facts})

    def add(self, record: FileRecord) -> None:
        """One input that was restored or failed."""
        status = (
            {"status": "restored"} if record.reason is None else {"status": "failed", "reason": record.reason}
        )
        line: dict[str, Any] = {
            "run": self.run, "source": str(record.job.source), "output": str(record.job.target), **status,
        }  # fmt: skip
        if record.reason is None:
            line |= {
                "input_size": record.input_size,  # height, width
                "output_size": record.output_size,
                "seconds": round(record.seconds, 3),
                **record.facts,
            }
        self._add(line)

    def _add(self, line: Mapping[str, Any]) -> None:
        text = json.dumps(line, ensure_ascii=True) + "\n"
        with self._lock:
            self._file.write(text)
            self._file.flush()

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_manifests(output_dir: Path) -> list[dict[str, Any]]:
    """The lines of all processes' records; a line that was cut off is left out."""
    lines = []
    for path in sorted(output_dir.glob("manifest*.jsonl")):
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:  # the process was killed while it wrote this line
                continue
    return lines


def other_settings(output_dir: Path, settings: Mapping[str, Any]) -> list[str]:
    """How existing outputs were made differently: "seed 1 (now 0)"; empty when they were not, or nothing says."""
    lines = read_manifests(output_dir)
    made = {line["run"] for line in lines if line.get("status") == "restored"}
    found: dict[str, None] = {}
    for line in lines:
        if line.get("run") in made and "settings" in line:
            for name in PIXEL_SETTINGS:
                before, now = line["settings"].get(name), settings.get(name)
                if before != now:
                    found[f"{name} {before} (now {now})"] = None
    return list(found)


def other_plans(output_dir: Path, shard: str, plan: str) -> list[str]:
    """Shards whose last run was about other input files than `plan`: together they may leave some out."""
    last: dict[str, str] = {}
    for line in read_manifests(output_dir):
        if line.get("shard") and "plan" in line:
            last[line["shard"]] = line["plan"]
    return sorted(other for other, its_plan in last.items() if other != shard and its_plan != plan)


def chosen_samples(output_dir: Path) -> dict[str, dict[str, str]]:
    """By output: which of its candidates was chosen last, as a page shows it."""
    return {
        line["output"]: {"candidate": f"{line['sample'] + 1} of {len(line['advantages'])}"}
        for line in read_manifests(output_dir)
        if line.get("status") == "restored" and "sample" in line
    }
