"""Small shared pieces: the device, the seed, checks of numbers, printed tables, files of results."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.errors import DiskError, InputError, reason
from utils.files import check_writable, nan_to_none


def add_device_flags(flags: argparse.ArgumentParser) -> None:
    """Add --device and the published --gpu to a parser."""
    flags.add_argument("--device", help="cpu, cuda, cuda:1, …; by default the GPU of --gpu where there is one")
    flags.add_argument("--gpu", type=int, default=0, help="number of the GPU")


def pick_device(args: argparse.Namespace) -> torch.device:
    """Choose the device; print a line if it is the CPU for want of a GPU; InputError if --device is not there."""
    if args.device is None:
        if not torch.cuda.is_available():
            print("no GPU found: running on the CPU", file=sys.stderr)  # noqa: T201
            return torch.device("cpu")
        args.device = f"cuda:{args.gpu}"
    try:
        device = torch.device(args.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        found = reason(error)
        raise InputError(f"--device {args.device} cannot be used ({found}). Name another, for example cpu.") from error
    return device


def numbers_below(values: Any, count: int, what: str) -> np.ndarray:
    """Convert whole numbers (n,) that name rows to int64; ValueError unless all are from 0 to count - 1."""
    numbers = np.asarray(values)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise ValueError(f"{what} must be (n,) whole numbers, found {numbers.shape} {numbers.dtype}")
    if numbers.size and not (numbers.min() >= 0 and numbers.max() < count):
        raise ValueError(f"{what} must lie in [0, {count}), found {numbers.min()} to {numbers.max()}")
    return numbers.astype(np.int64, copy=False)


def check_count(value: Any, what: str) -> None:
    """Raise ValueError unless a value is a whole number of 1 or more."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ValueError(f"{what} must be 1 or more, a whole number, found {value!r}")


def set_seed(seed: int) -> None:
    """Seed the global generators of torch and numpy, which draw initial weights and dropout."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries may draw from the global generator


def print_table(header: list[str], rows: Iterable[list[Any]], left: int = 1) -> None:
    """Print a table with the first `left` columns to the left, the others to the right; floats have four decimals."""
    print("\n".join(table_lines(header, rows, left)))


def table_lines(header: list[str], rows: Iterable[list[Any]], left: int = 1) -> Iterator[str]:
    """The lines of a table, as `print_table` prints them."""
    cells = [header] + [[f"{cell:.4f}" if isinstance(cell, float) else printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for number, row in enumerate(cells):
        aligned = (
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(aligned).rstrip()
        if number == 0:
            yield "  ".join("-" * width for width in widths)


def printable(cell: Any) -> str:
    """A cell as text without control characters, which a title may have, and a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in str(cell))


def append_results(path: str | None, results: Iterable[dict[str, Any]]) -> None:
    """Append one JSON object per result to --results, if given; DiskError, and the file is as it was, if that fails."""
    if path is None:
        return
    lines = "".join(json.dumps(nan_to_none(result), allow_nan=False) + "\n" for result in results).encode()
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
