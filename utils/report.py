"""Tables on the terminal, and results as JSON lines."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def print_table(header: list[str], rows: Iterable[list[Any]]) -> None:
    """A table with the first column to the left and numbers to the right; floats with four decimals."""
    cells = [header] + [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for place, row in enumerate(cells):
        first, *others = (
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())
        if place == 0:
            print("  ".join("-" * width for width in widths))


def append_results(path: str | None, results: Iterable[dict[str, Any]]) -> None:
    """Append one JSON object per result to --results FILE; nothing without a path."""
    if path is None:
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(result) + "\n" for result in results)
