"""Conditions on the fields of a bundle's items, such as "price < 20": those of import_dataset.py --keep."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import duckdb
import numpy as np
import pandas as pd

from data_processing.parts.columns import Column, Table
from data_processing.parts.row_filter import keep_rows, kept_columns, parse_keep
from data_processing.parts.tables import MEMORY, Tables
from serving.bundles import Bundle
from serving.store import Change, Item, whole
from utils.errors import InputError, shown

FLAG = "filter"
SETTINGS = {"memory_limit": f"{MEMORY}GiB", "temp_directory": ""}  # of DuckDB, which is to write nothing to the disk
FUNCTIONS = {  # that conditions may call: their results are never long, whoever sends them
    *("+", "-", "*", "/", "%", "~~", "!~~", "~~*", "!~~*", "like_escape", "abs", "round", "length", "trim"),
    *("lower", "upper", "contains", "starts_with", "prefix", "suffix", "regexp_matches"),
}


class Matching(NamedTuple):
    """What conditions on fields have found."""

    numbers: np.ndarray  # (N,) bool, True for items that meet all
    lacking: dict[str, int]  # how many items have no value of a field that is named


def matching(bundle: Bundle, change: Change, conditions: Sequence[str]) -> Matching:
    """Which of N numbers have items that meet all conditions, in the catalog as it was at one `change`.

    A field whose values can all be read as numbers is compared as one. An item without a field does not meet a
    condition on it.

    Raises:
        ValueError: a condition that cannot be used, or that no item meets.
        InputError: the bundle is damaged.
    """
    columns = {name: Column(name, name) for name in bundle.known}
    table = Table(bundle.path.parent, "bundle", "utf-8", None, columns, ())
    try:
        keep = {text: parse_keep(text, table, FLAG, FUNCTIONS) for text in conditions}
    except InputError as error:  # what is wrong with the caller's words
        raise ValueError(str(error)) from error
    names = kept_columns(keep)
    numbers, rows = [], []
    for number, item in bundle.store.all(change):
        numbers.append(number)
        rows.append([written(item, name) for name in names])
    frame = pd.DataFrame(rows, columns=[f"kept_{number}" for number in range(len(names))], dtype="string")
    frame.insert(0, "line", numbers)
    found = np.zeros(change.numbers, dtype=bool)
    with duckdb.connect(config=SETTINGS) as connection:  # in memory
        connection.execute("SET enable_progress_bar = false")
        tables = Tables(connection)
        connection.register("fields", frame)
        tables.make("filtered", "SELECT * FROM fields")
        try:
            keep_rows(tables, "filtered", keep, table, FLAG)
        except duckdb.OutOfMemoryException as error:
            raise ValueError(
                f"{FLAG} {' '.join(conditions)[:200]}: it needs more than {MEMORY} GiB of memory"
            ) from error
        except InputError as error:
            raise ValueError(f"{error}{odd_number(bundle, frame, names)}") from error
        found[[line for (line,) in tables.rows("SELECT line FROM filtered")]] = True
    lacking = {name: int(frame[f"kept_{place}"].isna().sum()) for place, name in enumerate(names)}
    return Matching(found, {name: count for name, count in lacking.items() if count})


def written(item: Item, name: str) -> str | None:
    """A field of an item as text; None where it has none."""
    value = item.fields.get(name)
    return value if value is None else whole(value if isinstance(value, str) else json.dumps(value))


def odd_number(bundle: Bundle, frame: pd.DataFrame, names: list[str]) -> str:
    """A sentence on the first value that is no number in a field that has more numbers; nothing if there is none."""
    for place, name in enumerate(names):
        values = frame[f"kept_{place}"]
        there = values.notna() & (values.str.strip() != "")
        odd = there & pd.to_numeric(values, errors="coerce").isna()
        if 0 < odd.sum() < there.sum() / 2:
            row = int(odd.to_numpy().argmax())
            (item,) = bundle.store.items([int(frame["line"].iloc[row])])
            return (
                f" {name!r} of item {shown(item.id)} is {shown(values.iloc[row])}, and no number, as {odd.sum()} of "
                f"{there.sum()} values: change them with update, or write TRY_CAST({name} AS DOUBLE) for {name}."
            )
    return ""
