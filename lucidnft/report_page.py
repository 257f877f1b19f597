"""The frame of a report: style for light and dark, and the parts of a page; nothing comes from outside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1c2430; --soft: #5b6675; --line: #dfe3e8;
  --accent: #2463c9; --good: #10734a; --good-back: #dcf3e7; --bad: #b3261e; --bad-back: #fbe3e1; --flat-back: #eceff3;
  --shade: rgb(0 0 0 / .22); }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1b212a; --ink: #e6eaf0; --soft: #9aa6b5;
  --line: #313a46; --accent: #79a8f7; --good: #7fd8ad; --good-back: #163a2b; --bad: #f5a49e; --bad-back: #4a201d;
  --flat-back: #2a323d; --shade: rgb(0 0 0 / .75); } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 18px 60px; }
h1 { font-size: 1.7rem; margin: 0 0 .2em; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2em 0 .7em; }
h3 { font-size: .95rem; margin: 1.4em 0 .6em; color: var(--soft); font-weight: 600; }
p { margin: .4em 0; max-width: 78ch; }
.verdict { font-size: 1.08rem; } .soft { color: var(--soft); font-size: .9rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.scroll { overflow-x: auto; background: linear-gradient(90deg, var(--card) 40%, transparent)
    0 0 / 36px 100% no-repeat local, linear-gradient(270deg, var(--card) 40%, transparent) 100% 0 / 36px 100% no-repeat
    local, linear-gradient(90deg, var(--shade), transparent) 0 0 / 12px 100% no-repeat,
  linear-gradient(270deg, var(--shade), transparent) 100% 0 / 12px 100% no-repeat, var(--card); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: 8px; text-align: left; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: .82rem; } tr + tr td { border-top: 1px solid var(--line); }
thead + tbody td { border-top: 1px solid var(--line); } td.number, th.number { text-align: right; }
.badge { padding: 2px 9px; border-radius: 99px; font-size: .82rem; font-weight: 600; background: var(--flat-back); }
.badge.improved { color: var(--good); background: var(--good-back); }
.badge.worse { color: var(--bad); background: var(--bad-back); }
.grid { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); }
figure { margin: 0; padding: 12px 12px 6px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
figcaption { font-size: .88rem; font-weight: 600; display: flex; justify-content: space-between; gap: 12px;
  overflow-wrap: anywhere; }
figcaption .last { color: var(--accent); font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; } svg text.axis { font-size: 11.5px; }
.rule { stroke: var(--line); } .curve { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
.dot { fill: var(--accent); } .band { fill: var(--accent); opacity: .17; }
.baseline { stroke: var(--soft); stroke-width: 1.3; stroke-dasharray: 5 4; }
svg.bar { width: 84px; }
.zero { stroke: var(--soft); } .interval { stroke: var(--accent); stroke-width: 3; opacity: .5; }
img { display: block; max-width: 100%; height: auto; border-radius: 4px; margin: 6px 0; }
.grid.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); align-items: start; }
details { padding: 10px 14px; margin-top: 10px; } summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font: 13px/1.5 ui-monospace, monospace; margin: 10px 0 4px; }
@media (max-width: 700px) { main { padding: 18px 10px 40px; } table { font-size: .84rem; } th, td { padding: 7px 5px; }
  td:first-child { white-space: normal; min-width: 5em; } }
"""


def page(title: str, body: Iterable[str], *, style: str = "") -> str:
    """A whole HTML document; style is CSS beside what every report has."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A titled part of the page; empty when it has nothing to show."""
    content = "\n".join(part for part in parts if part)
    return f"<section><h2>{escape(title)}</h2>\n{content}</section>" if content else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numeric: frozenset[int] = frozenset()) -> str:
    """A table of cells that are HTML already; columns in `numeric` are right-aligned."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="number">{cell}</{tag}>' if i in numeric else f"<{tag}>{cell}</{tag}>"
            for i, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = f"<thead><tr>{cells('th', header)}</tr></thead>" if any(header) else ""
    return f'<div class="card scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def fold(title: str, content: str) -> str:
    """A part that opens on a click."""
    return f'<details class="card"><summary>{escape(title)}</summary>{content}</details>'


def paragraph(text: str, kind: str = "") -> str:
    """Escaped text; kind is a CSS class."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"
