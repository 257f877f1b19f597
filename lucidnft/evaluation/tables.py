"""Tables as papers print them, in Markdown, LaTeX and plain text: arrows, best and second, gain in brackets."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from lucidnft.evaluation.evaluator import Evaluation, MetricInfo
from lucidnft.evaluation.summary import SIGNIFICANT, Cell, Summary, label

UP, DOWN = "\u2191", "\u2193"
NO_NUMBER = "-"
DETAILS = (
    "method", "metric", "n", "mean", "95% interval", "gain", "95% interval of the gain", "p", "p (Holm)", "verdict",
)  # fmt: skip

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": r"\textbar{}",
}  # fmt: skip


def markdown(result: Evaluation, summary: Summary) -> str:
    """The whole of tables.md: the table, the intervals and tests, and what has no number."""
    header = ["method", "n", *(f"{escape_markdown(label(m))} {arrow(m)}" for m in result.metrics)]
    rows = [
        [escape_markdown(method), num_images(result, summary, method)]
        + [_marked(summary, method, m, _markdown_mark, star=r"\*") for m in result.metrics]
        for method in result.methods
    ]
    parts = [
        f"# {escape_markdown(result.benchmark)}",
        f"Protocol `{result.protocol.name}`. {result.protocol.summary}",
        _pipes(header, rows),
        escape_markdown(legend(result, summary, bold="bold", second="underlined", star="*")),
        "## Intervals and tests",
        escape_markdown(detail_note(result, summary)),
        _pipes(DETAILS, [[escape_markdown(c) for c in row] for row in detail_rows(result, summary)]),
    ]
    for title, lines in (("Notes", result.notes), ("Without a number", missing_lines(result))):
        if lines:
            parts += [f"## {title}", "\n".join(f"- {escape_markdown(line)}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def latex(result: Evaluation, summary: Summary) -> str:
    """tables.tex: two tabulars for booktabs, the table and its intervals and tests, each with its note below."""
    arrows = {UP: r"$\uparrow$", DOWN: r"$\downarrow$"}
    header = ["Method", "$n$", *(f"{escape_latex(label(m))} {arrows[arrow(m)]}" for m in result.metrics)]
    rows = [
        [escape_latex(method), num_images(result, summary, method).replace("-", "--")]
        + [_latex_number(_marked(summary, method, m, _latex_mark, star="$^{*}$")) for m in result.metrics]
        for method in result.methods
    ]
    about = f"{result.benchmark}, protocol {result.protocol.name}. {result.protocol.summary}"
    note = legend(result, summary, bold="bold", second="underlined", star="*")
    lines = [
        r"% Two tables without floats around them; they need \usepackage{booktabs}.",
        f"% {' '.join(about.split())}",
        *_tabular(f"lr{'c' * len(result.metrics)}", header, rows),
        rf"\par\smallskip\noindent{{\footnotesize {escape_latex(note)}\par}}",
        "",
        "% Intervals and tests.",
        r"\bigskip{\footnotesize\noindent",
        *_latex_details(result, summary),
        rf"\par\smallskip\noindent {escape_latex(' '.join(_detail_sentences(result, summary)))}\par}}",
    ]
    return "\n".join(lines) + "\n"


def _latex_details(result: Evaluation, summary: Summary) -> list[str]:
    header = ["Method", "Metric", "$n$", "Mean", r"95\% interval", "Gain", r"95\% interval", "", "$p$ (Holm)"]
    compared = any(cell.gain is not None for cell in summary.cells.values())
    columns = [0, 1, 2, 3, 4, *([5, 6, 8] if compared else [])]  # of DETAILS
    rows = [
        [
            escape_latex(row[i]) if i < 2 else _latex_number(escape_latex(row[i]))
            for i in columns
        ]
        for row in detail_rows(result, summary)
    ]  # fmt: skip
    return _tabular("ll" + "r" * (len(columns) - 2), [header[i] for i in columns], rows)


def _tabular(columns: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]


def _latex_number(text: str) -> str:
    """A hyphen before a digit becomes a minus; where there is no number stands a dash."""
    return "--" if text == NO_NUMBER else re.sub(r"-(?=\d)", "$-$", text)


def plain(result: Evaluation, summary: Summary) -> str:
    """The table for a terminal: methods down, metrics across (+ higher is better), best in brackets, then notes."""
    header = ["method", "n", *(f"{m.name} {'-' if m.lower_is_better else '+'}" for m in result.metrics)]
    rows = [
        [method, num_images(result, summary, method)]
        + [_marked(summary, method, m, _plain_mark, star="*") for m in result.metrics]
        for method in result.methods
    ]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    texts = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    ]
    return "\n".join([texts[0], "-" * max(map(len, texts)), *texts[1:], *summary.notes])


def legend(result: Evaluation, summary: Summary, *, bold: str, second: str, star: str) -> str:
    """What the marks of a table mean, and which columns have none."""
    parts = ["Means over images"]
    if len(result.methods) > 1:
        parts.append(f"best {bold}" + (f", second {second}" if len(result.methods) > 2 else ""))
    if result.baseline is not None and len(result.methods) > 1:
        parts.append(
            f"in brackets the gain over {result.baseline} on the images both have; {star} p < {SIGNIFICANT:g}, "
            + _test(summary)
        )
    return " ".join(["; ".join(parts) + ".", *summary.notes])


def detail_note(result: Evaluation, summary: Summary) -> str:
    """What intervals, tests and verdicts rest on."""
    sentences = _detail_sentences(result, summary)
    if len(sentences) > 1:
        sentences.append(
            f"A verdict goes by the corrected test: improved or worse is p (Holm) < {SIGNIFICANT:g} where mean and "
            "signed ranks moved the same way, whatever the interval leaves out."
        )
    return " ".join(sentences)


def _detail_sentences(result: Evaluation, summary: Summary) -> list[str]:
    sentences = ["Intervals are percentile bootstraps over images, each by itself."]
    if any(cell.gain is not None for cell in summary.cells.values()):
        sentences.append(
            f"Gains are over {result.baseline} on the images both have; p (Holm): {_test(summary)}."
        )
    return sentences


def _test(summary: Summary) -> str:
    count = sum(cell.gain is not None for cell in summary.cells.values())
    return f"two-sided Wilcoxon signed-rank test, Holm-corrected for the {count} comparisons here"


def detail_rows(result: Evaluation, summary: Summary) -> list[list[str]]:
    """A row of DETAILS for every method and metric that has a number."""
    rows = []
    for method in result.methods:
        for metric in result.metrics:
            cell = summary.get(method, metric.name)
            if cell is not None:
                rows.append([method, label(metric), *detail_cells(cell, summary.decimals[metric.name])])
    return rows


def detail_cells(cell: Cell, decimals: int) -> list[str]:
    """The text of a cell's n, mean, interval, gain, its interval, p, p (Holm), verdict."""
    digits = decimals + 1
    shown = [str(cell.n), f"{cell.mean:.{digits}f}", interval(cell.low, cell.high, digits)]
    if cell.gain is None:
        return [*shown, *[NO_NUMBER] * 5]
    paired = cell.gain.paired
    return [
        *shown,
        f"{paired.difference:+.{digits}f}",
        interval(paired.low, paired.high, digits, sign="+"),
        p_text(cell.gain.p),
        p_text(cell.gain.p_holm),
        cell.gain.verdict,
    ]


def interval(low: float | None, high: float | None, digits: int, sign: str = "") -> str:
    """An interval in words."""
    if low is None or high is None:
        return "needs 2 images"
    return f"[{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def p_text(p: float) -> str:
    """A p-value; no more is claimed than that a very small one is small."""
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def missing_lines(result: Evaluation) -> list[str]:
    """One line for every metric that is not available and every image without a score."""
    return [metric.line() for metric in result.unavailable] + [problem.line() for problem in result.problems]


def arrow(metric: MetricInfo) -> str:
    """Up when higher is better."""
    return DOWN if metric.lower_is_better else UP


def num_images(result: Evaluation, summary: Summary, method: str) -> str:
    """How many images a method's means are over; a range where metrics differ."""
    counts = [c.n for m in result.metrics if (c := summary.get(method, m.name)) is not None]
    if not counts:
        return "0"
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)}-{max(counts)}"


def escape_markdown(text: str) -> str:
    """Text in a table cell or list."""
    return "".join(f"\\{c}" if c in "\\|*_`<>[]" else c for c in text)


def escape_latex(text: str) -> str:
    """Text in LaTeX."""
    return "".join(_LATEX.get(c, c) for c in text)


def _markdown_mark(text: str, rank: int) -> str:
    return f"**{text}**" if rank == 1 else f"<u>{text}</u>" if rank == 2 else text


def _latex_mark(text: str, rank: int) -> str:
    return rf"\textbf{{{text}}}" if rank == 1 else rf"\underline{{{text}}}" if rank == 2 else text


def _plain_mark(text: str, rank: int) -> str:
    return f"[{text}]" if rank == 1 else text


def _marked(
    summary: Summary, method: str, metric: MetricInfo, mark: Callable[[str, int], str], *, star: str
) -> str:
    """A cell of the main table: the mean, marked by its rank, and the gain in brackets."""
    cell = summary.get(method, metric.name)
    if cell is None:
        return NO_NUMBER
    decimals = summary.decimals[metric.name]
    rank = 1 if method in summary.best[metric.name] else 2 if method in summary.second[metric.name] else 0
    text = mark(f"{cell.mean:.{decimals}f}", rank)
    if cell.gain is None:
        return text
    return f"{text} ({cell.gain.paired.difference:+.{decimals}f}{star if cell.gain.significant else ''})"


def _pipes(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
