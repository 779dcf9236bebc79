"""A page of HTML in one file that needs no network and no script: escaped text, tables, bars, and the style.

Whatever is no `Html` is escaped wherever it is put in, so that text of a data set cannot become a part of the page.
"""

import html
import math
import unicodedata
from collections.abc import Iterable
from typing import Any, NamedTuple

LONGEST, LONGEST_NAME = 2_000, 80  # characters that are read of a text, and that are shown of a title or an id
JOINERS = "\u200c\u200d"  # invisible, but Persian, Hindi and emojis are written with them
WIDTH, HEIGHT = 1_000, 20  # of the drawing of a bar, which is stretched to its cell

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --text: #1d2125; --back: #fff; --faint: #626b75; --line: #d8dce1; --bar: #a9b4c0;
    --model: #2f6fb7; --mark: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7ea; --back: #16191d; --faint: #98a2ad; --line: #363c44;
    --bar: #566270; --model: #5b9be0; --mark: #fb923c; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 62rem;
    margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
p { max-width: 46rem; }
.faint, small, caption { color: var(--faint); }
.warning { border-left: 4px solid var(--mark); padding-left: .75rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .15rem .6rem .15rem 0; text-align: right; font-weight: normal; white-space: nowrap; }
th:first-child, td:first-child, table.left td { text-align: left; }
table.left td { white-space: normal; overflow-wrap: anywhere; }
thead th { color: var(--faint); border-bottom: 1px solid var(--line); }
th[colspan] { text-align: left; color: var(--faint); padding-top: .5rem; }
table.bars { width: 100%; }
table.bars th { white-space: normal; min-width: 9rem; }
table.bars td.bar { width: 100%; min-width: 6rem; }
table.bars td:last-child { text-align: left; }
svg { display: block; width: 100%; height: 1.1rem; }
svg rect { fill: var(--bar); }
svg rect.model { fill: var(--model); }
svg path { fill: none; stroke: var(--text); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
svg path.mark { stroke: var(--mark); stroke-dasharray: 3 3; }
summary { cursor: pointer; margin: 1rem 0 .25rem; }
.users { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
.users section { border: 1px solid var(--line); border-radius: 6px; padding: .25rem .9rem; font-size: .9rem; }
.users ul, .users ol { padding-left: 1.5rem; }
.users h3, .users ul, .users ol, .users p { margin: .4rem 0; }
@media (max-width: 36rem) { table.bars th, table.bars td { font-size: .8rem; padding-right: .4rem; }
    table.bars th { min-width: 4.5rem; } table.bars td.bar { min-width: 4rem; }
    table.bars td:last-child { white-space: normal; } td .faint { display: block; } }
"""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: Any) -> Html:
    """A value as HTML: escaped, and without characters that are not to be seen.

    >>> text("<script> 'a' & \\x00\\u202eb")
    '&lt;script&gt; &#x27;a&#x27; &amp;  b'
    """
    return value if isinstance(value, Html) else Html(html.escape("".join(map(visible, str(value)[:LONGEST]))))


def shortened(value: Any, longest: int = LONGEST_NAME) -> str:
    """A value in one line of at most so many characters, without those that are not to be seen.

    >>> shortened("a\\n b\\tcdef", longest=6)
    'a b c…'
    """
    line = " ".join("".join(map(visible, str(value)[:LONGEST])).split())
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


def visible(character: str) -> str:
    """A character, or what stands for one that is not to be seen, turns the text around it, or is no whole one."""
    kind = unicodedata.category(character)
    if kind == "Cf":
        return character if character in JOINERS else ""
    return {"Cc": " ", "Zl": " ", "Zp": " ", "Cs": "\ufffd"}.get(kind, character)


def name(value: Any) -> Html:
    """A title or an id of a data set, shortened; if it runs from right to left, only it does."""
    return element("bdi", shortened(value))


def element(tag: str, *parts: Any, **attributes: Any) -> Html:
    """An element of HTML with some parts in it; an attribute may end in _, as `class_`.

    >>> element("p", "a < b", element("b", "!"), class_="faint")
    '<p class="faint">a &lt; b<b>!</b></p>'
    """
    listed = "".join(f' {key.removesuffix("_")}="{text(value)}"' for key, value in attributes.items())
    return Html(f"<{tag}{listed}>{join(parts)}</{tag}>")


def join(parts: Iterable[Any], between: str = "") -> Html:
    """Parts one after another, as HTML."""
    return Html(between.join(map(text, parts)))


def page(title: str, *sections: Html) -> str:
    """A whole page."""
    return PAGE.format(title=text(title), style=STYLE, body=join([element("h1", title), *sections], "\n"))


Rows = list[list[Any]]


def table(header: list[Any], sections: Iterable[tuple[Any, Rows]], class_: str = "") -> Html:
    """A table of rows of cells under some headings; None is no heading, and an empty header is none."""
    head = element("thead", element("tr", *(element("th", cell, scope="col") for cell in header))) if header else Html()
    lines = []
    for heading, rows in sections:
        if heading is not None:
            lines.append(element("tr", element("th", heading, colspan=len(header) or 3, scope="rowgroup")))
        lines += [element("tr", element("th", row[0], scope="row"), *map(cell, row[1:])) for row in rows]
    body = element("tbody", join(lines, "\n"))
    return element("div", element("table", head, body, **({"class_": class_} if class_ else {})), class_="wide")


def cell(value: Any) -> Html:
    """A cell of a table; a drawing has a class of its own."""
    is_drawing = isinstance(value, Html) and value.startswith("<svg")
    return element("td", value, class_="bar") if is_drawing else element("td", value)


class Bar(NamedTuple):
    """A line of a chart."""

    label: Any
    value: float
    low: float  # bounds of the whisker; NaN for none
    high: float
    note: Any  # what is written behind the value
    model: bool  # whether others are compared with it


def chart(sections: list[tuple[Any, list[Bar]]]) -> Html:
    """Bars on one scale, under headings, with a line where the model's bar ends, in its section and those behind it."""
    ends = [end for _, bars in sections for bar in bars for end in (bar.value, bar.high) if math.isfinite(end)]
    top = max(ends, default=0) or 1.0
    drawn, mark = [], math.nan
    for heading, bars in sections:
        mark = next((bar.value for bar in bars if bar.model), mark)
        drawn.append((heading, [chart_row(bar, mark, top) for bar in bars]))
    return table([], drawn, "bars")


def chart_row(bar: Bar, mark: float, top: float) -> list[Any]:
    """The cells of a line of a chart: a label, a drawing, and the numbers."""
    number = element("b", f"{bar.value:.4f}") if bar.model else f"{bar.value:.4f}"
    return [bar.label, drawing(bar, mark, top), join([number, element("span", bar.note, class_="faint")], " ")]


def drawing(bar: Bar, mark: float, top: float) -> Html:
    """A bar and its whisker, to the scale where `top` fills the width; a line stands at `mark`."""

    def at(value: float) -> str:
        return f"{min(max(value / top, 0.0), 1.0) * (WIDTH - 4) + 2:.1f}"  # lines at the edge have half their width

    width = f"{min(max(bar.value / top, 0.0), 1.0) * (WIDTH - 4):.1f}"
    parts = [element("rect", class_="model" if bar.model else "rule", x=2, y=3, width=width, height=HEIGHT - 6)]
    if math.isfinite(mark) and not bar.model:
        parts.append(element("path", class_="mark", d=f"M{at(mark)} 0V{HEIGHT}"))
    if math.isfinite(bar.low) and math.isfinite(bar.high):
        low, high = at(bar.low), at(bar.high)
        parts.append(element("path", d=f"M{low} 10H{high}M{low} 6V14M{high} 6V14"))
    box = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "preserveAspectRatio": "none", "aria-hidden": "true"}
    return element("svg", *parts, **box)
