"""What every figure needs: a place to draw, marks that can be told apart in grey, and a file that is whole."""

from pathlib import Path
from typing import Any

from utils.errors import InputError
from utils.files import atomic_write, check_writable
from utils.util import printable

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # of Okabe and Ito
MARKERS, DASHES = "osD^vPX*<>h", ("-", "--", "-.", ":")


def figure_for(
    output: str, columns: int = 1, rows: int = 1, figsize: tuple[float, float] | None = None, **options: Any
) -> tuple[Any, Any]:
    """Make a matplotlib figure and its axes; raise InputError if it cannot be written to `output`, by its ending.

    `figsize` is width and height in inches, `options` are those of `Figure.subplots`.
    """
    from matplotlib.figure import Figure  # heavy; without pyplot, which would look for a screen

    check_writable(output)
    figure = Figure(figsize, layout="constrained")
    axes = figure.subplots(rows, columns, **options)
    formats = figure.canvas.get_supported_filetypes()
    if Path(output).suffix[1:] not in formats:
        raise InputError(f"--output {output}: expected a name that ends in one of {', '.join(sorted(formats))}.")
    return figure, axes


def save_figure(figure: Any, output: str) -> None:
    """Write a figure atomically, in the format that the name ends in, and print its name."""
    with atomic_write(output) as file:
        figure.savefig(file, dpi=130, format=Path(output).suffix[1:])
    print(f"wrote {output}")


def plain(text: str) -> str:
    """Text from files as a figure can show it: in one line, and without what matplotlib would read as mathematics."""
    return printable(text).replace("$", r"\$")


def marks(count: int) -> list[dict[str, Any]]:
    """Options of `count` lines of a plot, which markers tell apart where colours cannot be seen: up to 77 differ."""
    styles = ({"color": COLOURS, "marker": MARKERS, "linestyle": DASHES}).items()
    return [{name: values[number % len(values)] for name, values in styles} for number in range(count)]
