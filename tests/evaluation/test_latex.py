"""tables.tex, to the letter and as LaTeX: no LaTeX is needed to see that it is whole."""

from __future__ import annotations

import itertools
import re

from lucidnft.evaluation.metrics import MetricInfo
from lucidnft.evaluation.summary import summarise
from lucidnft.evaluation.tables import escape_latex, latex
from tests.evaluation.small_results import STEMS, evaluation


def test_latex_to_the_letter():
    result = evaluation(base=(20.0, 0.3), third_1=(18.9, 0.26))
    lines = latex(result, summarise(result)).splitlines()
    assert lines[:21] == [
        r"% Two tables without floats around them; they need \usepackage{booktabs}.",
        "% Bench_1, protocol rgb. PSNR and SSIM on RGB, no border cropped; whole images.",
        r"\begin{tabular}{lrcc}",
        r"\toprule",
        r"Method & $n$ & PSNR $\uparrow$ & LPIPS (Alex) $\downarrow$ \\",
        r"\midrule",
        r"base & 6 & \textbf{23.00} & 0.3075 \\",
        r"third\_1 & 6 & 21.87 ($-$1.13) & \textbf{0.2665} ($-$0.0410) \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip\noindent{\footnotesize Means over images; best bold; in brackets the gain over base on the "
        r"images both have; * p $<$ 0.05, two-sided Wilcoxon signed-rank test, Holm-corrected for the 2 comparisons "
        r"here.\par}",
        "",
        "% Intervals and tests.",
        r"\bigskip{\footnotesize\noindent",
        r"\begin{tabular}{llrrrrrr}",
        r"\toprule",
        r"Method & Metric & $n$ & Mean & 95\% interval & Gain & 95\% interval & $p$ (Holm) \\",
        r"\midrule",
        r"base & PSNR & 6 & 23.000 & [21.400, 24.600] & -- & -- & -- \\",
        r"base & LPIPS (Alex) & 6 & 0.30750 & [0.30350, 0.31150] & -- & -- & -- \\",
        lines[20],
    ]
    assert re.fullmatch(
        r"third\\_1 & PSNR & 6 & 21\.87\d & \[[\d., ]+\] & \$-\$1\.12\d & \[\$-\$[\d.]+, \$-\$[\d.]+\] & 0\.0625 \\\\",
        lines[20],
    )
    assert escape_latex("a\\b_c%") == r"a\textbackslash{}b\_c\%"


def check_latex(text: str) -> None:
    """Braces, environments and math are closed, rows have their columns, and nothing special is left bare."""
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    bare = code.replace(r"\\", " ")
    marks = re.findall(r"(?<!\\)[{}]", bare)
    depths = list(itertools.accumulate(1 if mark == "{" else -1 for mark in marks))
    assert depths[-1] == 0 and min(depths) == 0
    assert re.findall(r"\\(?:begin|end)\{(\w+)\}", code) == ["tabular"] * 4
    outside = re.sub(r"(?<!\\)\$[^$\n]*?(?<!\\)\$", "", bare)  # of math
    assert not re.search(r"(?<!\\)[$%#_^~]|[<>|]|(?<![\w-])-\d", outside), outside
    known = (
        "begin|end|toprule|midrule|bottomrule|par|smallskip|bigskip|noindent|footnotesize|textbf|underline"
    )
    commands = set(re.findall(r"\\([a-zA-Z]+)", outside))
    assert commands <= {*known.split("|"), "textbackslash", "textasciitilde", "textasciicircum", "textbar"}
    for columns, rows in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end", code, re.DOTALL):
        found = re.findall(r"^(.*) \\\\$", rows, re.MULTILINE)
        assert len(found) > 1
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in found} == {len(columns)}


def test_latex_is_whole_whatever_names_and_numbers_are():
    result = evaluation(base_1=(20.0, 0.3), ours=(-22.0, 0.2), other=(3e-9, -0.3))
    result.benchmark = "50% of\nB_1 & {x} <y|z> ~^#$\\"
    result.metrics = (*result.metrics, MetricInfo("new_%&{}^~<|>$\\", True, frozenset(), {}))
    for index, scores in enumerate(result.scores.values()):
        scores[result.metrics[2].name] = {stem: -1.0 - index * i for i, stem in enumerate(STEMS[index:])}
    result.scores["other"]["lpips"] = {}
    result.scores["ours"]["psnr"] = {"s0": -3.0}  # no interval
    text = latex(result, summarise(result))
    check_latex(text)
    assert "needs 2 images" in text and "Gain" in text
    lone = evaluation(only=(20.0, 0.3))
    check_latex(latex(lone, summarise(lone)))
    assert "Gain" not in latex(lone, summarise(lone))
