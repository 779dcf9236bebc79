"""Tables as text, CSV, Markdown and LaTeX."""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.files import atomic_write
from utils.util import printable, table_lines

FORMATS = CSV, TEX, MARKDOWN = (".csv", ".tex", ".md")
LATEX = {  # what stands for a character that LaTeX would obey, or that its fonts lack
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "{}$&#_%"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": r"\textbar{}",
    "[": "{[}",  # at the start of a line the command before it would take it for its own, and so a star
    "*": "{*}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "–": "--",
}


FORMULA, NUMBER = re.compile(r"[=+\-@\t\r\n]"), re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")


class Styled(NamedTuple):
    """A cell whose first part may be marked as the best of its column."""

    text: str
    rest: str = ""
    best: bool = False


Table = tuple[list[str], list[list[Styled]], int]  # header, lines, and how many columns stand to the left


def text_lines(header: list[str], lines: Sequence[Sequence[Styled]], left: int) -> Iterator[str]:
    """The lines of a table for the terminal; a star stands behind the best."""
    starred = {column for line in lines for column, one in enumerate(line) if one.best}

    def shown(one: Styled, column: int) -> str:
        return f"{one.text}{one.rest}" + ("*" if one.best else " " * (column in starred))

    head = [name + " " * (column in starred) for column, name in enumerate(header)]
    return table_lines(head, [[shown(one, column) for column, one in enumerate(line)] for line in lines], left)


def markdown_lines(header: list[str], lines: Sequence[Sequence[Styled]], left: int) -> Iterator[str]:
    """The lines of a table in Markdown; the best is bold."""
    yield _row([markdown(name) for name in header], "| ", " | ", " |")
    yield _row(["---" if column < left else "---:" for column in range(len(header))], "| ", " | ", " |")
    for line in lines:
        yield _row(_marked(line, markdown, "**{}**"), "| ", " | ", " |")


def latex_lines(header: list[str], lines: Sequence[Sequence[Styled]], left: int) -> Iterator[str]:
    """The lines of a table in LaTeX, for the package booktabs; the best is bold."""
    yield f"\\begin{{tabular}}{{{'l' * left}{'r' * (len(header) - left)}}}"
    yield "\\toprule"
    yield _row([latex(name) for name in header], "", " & ", r" \\")
    yield "\\midrule"
    for line in lines:
        yield _row(_marked(line, latex, "\\textbf{{{}}}"), "", " & ", r" \\")
    yield "\\bottomrule"
    yield "\\end{tabular}"


def _marked(line: Sequence[Styled], escape: Callable[[str], str], bold: str) -> list[str]:
    return [(bold.format(escape(one.text)) if one.best else escape(one.text)) + escape(one.rest) for one in line]


def _row(cells: Sequence[str], start: str, between: str, end: str) -> str:
    return start + between.join(cells) + end


def latex(text: str) -> str:
    r"""A text for LaTeX, which prints it as it stands.

    >>> latex("EASE_R & 5 %")
    'EASE\\_R \\& 5 \\%'
    """
    return "".join(LATEX.get(sign, sign) for sign in printable(text))


def markdown(text: str) -> str:
    """A text for a cell in Markdown, which prints it as it stands."""
    return re.sub(r"([\\|*_`<>\[\]~$&])", r"\\\1", printable(text))


def for_csv(cell: Any) -> Any:
    """A cell for CSV: text that a spreadsheet would take for a formula stands behind an apostrophe, as OWASP advises.

    >>> for_csv("=1+1"), for_csv("-0.5"), for_csv(-0.5), for_csv("RecGPT")
    ("'=1+1", '-0.5', -0.5, 'RecGPT')
    """
    return f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) and not NUMBER.fullmatch(cell) else cell


def write_tables(path: str, tables: Sequence[Table], flat: Sequence[dict[str, Any]]) -> None:
    """Write tables by the ending of the name: Markdown, LaTeX, or as CSV the `flat` lines in full precision."""
    kind = Path(path).suffix
    with atomic_write(path, "w") as file:
        if kind == CSV:
            names = dict.fromkeys(name for line in flat for name in line)
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(map(for_csv, names))
            writer.writerows([for_csv(line.get(name, "")) for name in names] for line in flat)
        else:
            lines_of = markdown_lines if kind == MARKDOWN else latex_lines
            file.write("\n".join("".join(f"{line}\n" for line in lines_of(*table)) for table in tables))
