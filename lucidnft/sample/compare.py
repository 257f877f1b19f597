"""compare.html: every image before and after, under a slider, side by side, or pixel by pixel.

The pages and the folder of previews beside them open from a disk, without a server or anything from outside.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path
from urllib.parse import quote

from tqdm import tqdm

from lucidnft.checkpoint import save_text
from lucidnft.evaluation.pairing import printable
from lucidnft.evaluation.protocols import decimals_of
from lucidnft.report_page import page, paragraph
from lucidnft.sample.compare_style import SCRIPT, STYLE
from lucidnft.sample.previews import FOLDER, ComparedPair, Preview, Previews, make_previews

__all__ = ["ComparedPair", "write_comparison"]

PAGE_FILE = "compare.html"
IMAGES_PER_PAGE = 60
MOST_THREADS = 8
SMALL_SIDE = (
    320  # pixels; pictures smaller than it on both sides are enlarged, since nothing could be pointed at
)
WIDE = 2.2  # width by height from which pictures go below each other instead of beside
MODES = (("slider", "slider"), ("side", "side by side"), ("pixels", "1:1"))
LABELS = {"lr": "LR, enlarged", "output": "restored", "lr alone": "LR", "output alone": "restored"}

Scores = Mapping[str, Mapping[str, float]]


def write_comparison(
    pairs: Sequence[ComparedPair],
    output_dir: Path,
    *,
    scores: Scores | None = None,
    lower_is_better: Collection[str] = (),
    title: str = "Before and after",
    progress: bool = True,
) -> Path:
    """Write output_dir/compare.html, further pages compare-2.html ... if there are many, and the previews they show.

    A file that is missing or cannot be read is shown as such.  Previews of unchanged files are used again.

    Args:
        pairs: the images, in the order in which they are shown.
        output_dir: the folder of the pages; restored files below it are linked to.
        scores: name of a pair -> metric -> number in the metric's own direction.  With scores the images are
            shown in the order of the first metric, the worst first, those without it last.
        lower_is_better: metrics whose small numbers are good.

    Returns: the path of the first page.

    Raises:
        ValueError: there is nothing to compare, or two pairs of one name.
        OSError: a page or a preview cannot be written.
    """
    names = [pair.name for pair in pairs]
    if not pairs:
        raise ValueError("there is no restored image to compare; restore some first")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two pairs are called {twice!r}; give every pair a name of its own")
    (output_dir / FOLDER).mkdir(parents=True, exist_ok=True)
    scores = scores or {}
    metrics = list(dict.fromkeys(metric for name in names for metric in scores.get(name, {})))
    pairs = worst_first(pairs, scores, metrics[:1], lower_is_better)
    previews = _make_all(pairs, output_dir, progress)
    cards = [
        card(number, pair, shown, metrics, scores.get(pair.name, {}), output_dir)
        for number, (pair, shown) in enumerate(zip(pairs, previews, strict=True), start=1)
    ]
    broken = [i for i, shown in enumerate(previews, start=1) if shown.problems]
    count = -(-len(pairs) // IMAGES_PER_PAGE)
    for number in range(1, count + 1):
        on_page = cards[(number - 1) * IMAGES_PER_PAGE : number * IMAGES_PER_PAGE]
        links = _page_links(number, count)
        head = [
            f"<h1>{escape(title)}</h1>",
            paragraph(_summary(len(pairs), metrics[:1])),
            _broken_links(broken, number),
            links,
            _controls(metrics),
        ]
        body = [*head, '<div id="pairs">', *on_page, "</div>", links, f"<script>{SCRIPT}</script>"]
        save_text(output_dir / _page_file(number), page(title, body, style=STYLE))
    _remove_further_pages(output_dir, count)
    return output_dir / PAGE_FILE


def worst_first(
    pairs: Sequence[ComparedPair], scores: Scores, metrics: Sequence[str], lower_is_better: Collection[str]
) -> list[ComparedPair]:
    """In the order of the first of the metrics; pairs without that score come last, otherwise order is kept."""
    if not metrics:
        return list(pairs)
    metric = metrics[0]
    sign = -1.0 if metric in lower_is_better else 1.0
    scored = [pair for pair in pairs if metric in scores.get(pair.name, {})]
    others = [pair for pair in pairs if metric not in scores.get(pair.name, {})]
    return sorted(scored, key=lambda pair: sign * scores[pair.name][metric]) + others


def card(
    number: int,
    pair: ComparedPair,
    shown: Previews,
    metrics: Sequence[str],
    scores: Mapping[str, float],
    output_dir: Path,
) -> str:
    """The HTML of one pair."""
    name = escape(printable(pair.name))
    buttons = _mode_buttons(f"How {name} is shown") if len(shown.sides) == 2 else ""
    values = "".join(f' data-score-{i}="{scores[m]:.9g}"' for i, m in enumerate(metrics) if m in scores)
    parts = [
        f'<article class="card pair" id="image-{number}" data-number="{number}"{values}>',
        f'<header><h2><a href="#image-{number}">{name}</a></h2>{buttons}</header>',
        *(f'<p class="problem">{escape(printable(problem))}</p>' for problem in shown.problems),
        _view(shown, name),
        _facts(pair, shown, scores, output_dir),
        "</article>",
    ]
    return "\n".join(part for part in parts if part)


def _make_all(pairs: Sequence[ComparedPair], output_dir: Path, progress: bool) -> list[Previews]:
    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)), len(pairs))
    with ThreadPoolExecutor(threads) as pool:
        made = pool.map(lambda pair: make_previews(pair, output_dir), pairs)
        try:
            return list(tqdm(made, desc="compare", unit="image", total=len(pairs), disable=not progress))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _view(shown: Previews, name: str) -> str:
    if not shown.sides:
        return ""
    width, height = next(iter(shown.sides.values())).size
    enlarged = max(1, -(-SMALL_SIDE // max(width, height)))
    alone = " alone" * (len(shown.sides) == 1)
    kinds = {
        "small": enlarged > 1,
        "wide": width > WIDE * height,
        "alpha": shown.has_alpha,
        "alone": bool(alone),
    }
    classes = ["view", *(kind for kind, holds in kinds.items() if holds)]
    pictures = "".join(
        _picture(side, preview, name, LABELS[side + alone]) for side, preview in shown.sides.items()
    )
    slider = (
        '<span class="handle" aria-hidden="true"></span>'
        '<input type="range" min="0" max="100" step="any" value="50" autocomplete="off" '
        f'aria-label="Share of {name} that is shown before restoring, in percent">'
    )
    return (
        f'<div class="{" ".join(classes)}" style="--w:{width * enlarged};--h:{height * enlarged}">'
        f"{pictures}{slider if len(shown.sides) == 2 else ''}</div>"
    )


def _picture(side: str, preview: Preview, name: str, label: str) -> str:
    width, height = preview.size
    return (
        f'<div class="picture {side}"><img loading="lazy" decoding="async" draggable="false" '
        f'src="{quote(preview.file)}" width="{width}" height="{height}" alt="{name}, {label}">'
        f'<span class="label">{label}</span></div>'
    )


def _facts(pair: ComparedPair, shown: Previews, scores: Mapping[str, float], output_dir: Path) -> str:
    facts = {side: "{}x{} px".format(*preview.original) for side, preview in shown.sides.items()}
    rows = []
    if "lr" in facts:
        rows.append(("LR", facts["lr"]))
    if "output" in facts:
        preview = shown.sides["output"]
        text = facts["output"]
        if preview.size != preview.original:
            text += f", shown at {100 * preview.size[0] / preview.original[0]:.0f} %"
        link = _link(pair.output, output_dir)
        rows.append(("restored", f'<a href="{link}">{text}</a>' if link else text))
    rows += [(escape(name), f"{value:.{decimals_of(name, abs(value))}f}") for name, value in scores.items()]
    rows += [(escape(printable(name)), escape(printable(text))) for name, text in pair.chosen.items()]
    items = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in rows)
    return f"<dl>{items}</dl>" if items else ""


def _link(path: Path, folder: Path) -> str:
    """The URL of a file below folder as seen from there, or nothing: the folder may be taken elsewhere."""
    path, folder = path.absolute(), folder.absolute()
    return quote(os.fsencode(path.relative_to(folder))) if path.is_relative_to(folder) else ""


def _summary(count: int, first_metric: Sequence[str]) -> str:
    images = f"{count} image{'s' * (count != 1)}"
    return f"{images}, the worst by {first_metric[0]} first." if first_metric else f"{images}."


def _broken_links(numbers: Sequence[int], on_page: int, most: int = 20) -> str:
    """Which images lack a side, wherever they are."""
    if not numbers:
        return ""
    links = ", ".join(f'<a href="{_url_of(n, on_page)}">{n}</a>' for n in numbers[:most])
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return f'<p class="problem">{len(numbers)} could not be shown whole: {links}{more}</p>'


def _url_of(number: int, on_page: int) -> str:
    where = (number - 1) // IMAGES_PER_PAGE + 1
    return f"{'' if where == on_page else _page_file(where)}#image-{number}"


def _page_links(number: int, count: int) -> str:
    if count == 1:
        return ""
    near = [n for n in range(1, count + 1) if n in (1, count) or abs(n - number) <= 3]
    parts: list[str] = []
    for before, n in zip([0, *near], near, strict=False):
        if n > before + 1:
            parts.append("<span>...</span>")
        here = ' aria-current="page"' if n == number else ""
        parts.append(f'<a href="{_page_file(n)}"{here}>{n}</a>')
    return f'<nav class="pages" aria-label="Pages">{"".join(parts)}</nav>'


def _controls(metrics: Iterable[str]) -> str:
    options = "".join(
        f'<option value="score-{i}-{way}">{escape(metric)}, {words}</option>'
        for i, metric in enumerate(metrics)
        for way, words in (("up", "smallest first"), ("down", "largest first"))
    )
    order = (
        '<label>order of this page <select id="order" autocomplete="off"><option value="number-up">as listed</option>'
        f"{options}</select></label>"
        if options
        else ""
    )
    return f'<div class="controls" id="controls">{_mode_buttons("How all images are shown")}{order}</div>'


def _mode_buttons(label: str) -> str:
    buttons = "".join(f'<button type="button" value="{mode}">{text}</button>' for mode, text in MODES)
    return f'<div class="modes" role="group" aria-label="{label}">{buttons}</div>'


def _page_file(number: int) -> str:
    return PAGE_FILE if number == 1 else f"compare-{number}.html"


def _remove_further_pages(folder: Path, count: int) -> None:
    """Pages of an earlier run with more images would show what is no longer compared."""
    for path in folder.glob("compare-*.html"):
        found = re.fullmatch(r"compare-(\d+)\.html", path.name)
        if found and int(found[1]) > count:
            path.unlink()
