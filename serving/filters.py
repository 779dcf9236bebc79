"""Conditions on the fields of a bundle's items, such as "price < 20": those of import_dataset.py --keep."""

import json
import tempfile
from pathlib import Path

import pandas as pd

from data_processing.parts.columns import Column, Table
from data_processing.parts.row_filter import keep_rows, kept_columns, parse_keep
from data_processing.parts.tables import workspace
from serving.bundles import Bundle
from serving.store import ItemId

FLAG = "--filter"


def matching(bundle: Bundle, conditions: list[str]) -> list[ItemId]:
    """Ids of the items that meet all conditions, and how many do not is printed.

    A field whose values can all be read as numbers is compared as one. An item without a field does not meet a
    condition on it. InputError for a condition that cannot be used, or that no item meets.
    """
    columns = {name: Column(name, name) for name in bundle.known}
    table = Table(bundle.path.parent, "bundle", "utf-8", None, columns, ())
    keep = {text: parse_keep(text, table, FLAG) for text in conditions}
    names = kept_columns(keep)
    ids, rows = [], []
    for item in bundle.store.all():
        ids.append(item.id)
        rows.append([None if item.fields.get(name) is None else written(item.fields[name]) for name in names])
    frame = pd.DataFrame(rows, columns=[f"kept_{number}" for number in range(len(names))], dtype="string")
    frame.insert(0, "line", range(len(ids)))
    with tempfile.TemporaryDirectory() as folder, workspace(Path(folder) / "filter", {}) as tables:
        tables.connection.register("fields", frame)
        tables.make("filtered", "SELECT * FROM fields")
        keep_rows(tables, "filtered", keep, table, FLAG)
        return [ids[line] for (line,) in tables.rows("SELECT line FROM filtered ORDER BY line")]


def written(value: object) -> str:
    """A value of a field as text."""
    return value if isinstance(value, str) else json.dumps(value)
