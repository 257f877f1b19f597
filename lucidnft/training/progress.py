"""What the progress bars of the loops show."""

from __future__ import annotations

import sys

from tqdm import tqdm


def show_phase(bar: tqdm[None], run: str, phase: str | None) -> None:
    """Name the phase a run is in on its bar, when somebody watches: in a log file it would only add lines."""
    if sys.stderr.isatty():
        bar.set_description_str(run if phase is None else f"{run} {phase}")
