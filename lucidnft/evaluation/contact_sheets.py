"""The worst and the best images of a method, small, beside what they are compared with."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from html import escape
from pathlib import Path

from PIL import Image

from lucidnft.evaluation.evaluator import Evaluation, MetricInfo
from lucidnft.evaluation.scoring import read_8bit
from lucidnft.evaluation.summary import Summary
from lucidnft.images import UnreadableImageError, resize, tensor_to_uint8

NUM_SHOWN = 3  # worst, and as many best
THUMBNAIL = 176  # pixels of the longer side
JPEG_QUALITY = 82
MOST_KEPT = 512  # thumbnails that are not made twice

STYLE = """
.sheet { display: grid; gap: 10px; margin: 10px 0; overflow-x: auto; }
.sheet .row { display: flex; gap: 10px; align-items: flex-start; border-top: 1px solid var(--line); padding-top: 8px; }
.sheet .said { width: 190px; flex: none; font-size: .86rem; overflow-wrap: anywhere; }
.sheet .said b { display: block; }
.sheet .cell { width: 176px; flex: none; font-size: .78rem; color: var(--soft); }
.sheet .cell img { margin: 2px 0 0; }
@media (max-width: 700px) { .sheet .row { flex-wrap: wrap; } .sheet .said { width: 100%; }
  .sheet .cell { width: calc(50% - 5px); } .sheet .cell img { width: 100%; } }
"""


def contact_sheet(result: Evaluation, summary: Summary, method: str, metric: MetricInfo) -> str:
    """Rows of the worst and the best images of a method, by gain over the baseline or else by score."""
    own = result.scores[method][metric.name]
    base = _compared(result, method, metric)
    ordered = sorted(base or own, key=lambda s: own[s] - base.get(s, 0.0))
    if metric.lower_is_better:
        ordered.reverse()
    count = min(NUM_SHOWN, len(ordered) // 2)
    chosen = [("worst", stem) for stem in ordered[:count]] + [
        ("best", s) for s in reversed(ordered[len(ordered) - count :])
    ]
    if len(ordered) == 1:
        chosen = [("only image", ordered[0])]
    digits = summary.decimals[metric.name]
    rows = []
    for rank, stem in chosen:
        said = f"<b>{escape(stem)}</b>{rank}: {own[stem]:.{digits}f}"
        if base:
            gain = own[stem] - base[stem]
            said += f"<br>{escape(str(result.baseline))}: {base[stem]:.{digits}f} ({gain:+.{digits}f})"
        cells = "".join(_cell(title, path) for title, path in _pictures(result, method, stem))
        rows.append(f'<div class="row"><div class="said">{said}</div>{cells}</div>')
    return f'<div class="sheet">{"".join(rows)}</div>'


def order_of(result: Evaluation, method: str, metric: MetricInfo) -> str:
    """What a contact sheet's worst and best go by, in words."""
    if _compared(result, method, metric):
        return f"by gain over {result.baseline}"
    if result.baseline in (None, method):
        return "by score"
    return f"by score, since {result.baseline} has none for these images"


def _compared(result: Evaluation, method: str, metric: MetricInfo) -> dict[str, float]:
    """The baseline's scores of the images that the method has too."""
    if result.baseline in (None, method):
        return {}
    base = result.scores[str(result.baseline)][metric.name]
    return {stem: base[stem] for stem in result.scores[method][metric.name] if stem in base}


def _pictures(result: Evaluation, method: str, stem: str) -> list[tuple[str, Path]]:
    case = result.cases[method][stem]
    found = [("LR", case.lr)]
    if result.baseline not in (None, method) and stem in result.cases[str(result.baseline)]:
        found.append((str(result.baseline), result.cases[str(result.baseline)][stem].sr))
    found += [(method, case.sr), ("HR", case.hr)]
    return [(title, path) for title, path in found if path is not None]


def _cell(title: str, path: Path) -> str:
    try:
        picture = f'<img alt="{escape(title)}" src="{thumbnail(path)}">'
    except UnreadableImageError:
        picture = "<br>(cannot be read)"
    return f'<div class="cell">{escape(title)}{picture}</div>'


@lru_cache(maxsize=MOST_KEPT)
def thumbnail(path: Path) -> str:
    """The whole image as a small JPEG in a data URI; images smaller than it are not enlarged by much.

    Raises:
        UnreadableImageError: the file cannot be read.
    """
    image = read_8bit(path)
    factor = THUMBNAIL / max(image.shape[2:])
    size = (max(1, round(image.shape[2] * factor)), max(1, round(image.shape[3] * factor)))
    pixels = tensor_to_uint8(resize(image, size)[0].permute(1, 2, 0)).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
