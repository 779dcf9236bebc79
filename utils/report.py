"""Tables on the terminal, and results as JSON lines."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from utils.errors import DiskError, reason
from utils.files import check_writable, finite


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
    """Append one JSON object per result to --results FILE, all of them or none; nothing without a path.

    Raises:
        DiskError: the file cannot be written; it is as it was.
    """
    if path is None:
        return
    lines = "".join(json.dumps(finite(result), allow_nan=False) + "\n" for result in results).encode()
    check_writable(path)
    try:
        if Path(path).exists() and not Path(path).is_file():  # a device or pipe
            Path(path).write_bytes(lines)
            return
        with Path(path).open("a+b", buffering=0) as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - 1))
            lines = lines if file.read() in (b"", b"\n") else b"\n" + lines
            try:
                while lines:
                    lines = lines[file.write(lines) :]
            except BaseException:
                file.truncate(length)
                raise
    except OSError as error:
        raise DiskError(
            f"{path} could not be written ({reason(error)}) and is as it was. Free some space, or name another file."
        ) from error
