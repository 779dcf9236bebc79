"""Files of items: their ids, and some of their fields."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from data_processing.parts.columns import ReadSettings, clean, find_column
from data_processing.parts.formats import ENDINGS, FORMATS, field_names, open_table
from data_processing.parts.interactions import Source, read_items
from data_processing.parts.missing import has_text, is_missing
from data_processing.parts.splits import item_texts
from data_processing.parts.tables import workspace
from utils.errors import InputError, shown
from utils.files import read_jsonl


def add_file_flags(flags: argparse.ArgumentParser) -> None:
    """Add the flags that say how the file of --items is read."""
    flags.add_argument("--item_column", metavar="NAME", help="its column of the ids, where it has no usual name")
    flags.add_argument("--item_names", nargs="+", metavar="NAME", help="of its columns, if it has no line of names")
    add_format_flags(flags)


def add_format_flags(flags: argparse.ArgumentParser) -> None:
    """Add the flags that say how any table is read."""
    flags.add_argument("--format", choices=FORMATS, help="of the file; guessed from its name and contents by default")
    flags.add_argument("--encoding", help="of its text, such as latin-1; utf-8 by default")
    flags.add_argument("--no_quotes", action="store_true", help='" is an ordinary character in it')


def read_items_file(
    args: argparse.Namespace, only: list[str] | None = None, without: list[str] | None = None, empty: bool = False
) -> list[tuple[str, dict[str, Any]]]:
    """Read --items: ids, and the fields of `only` some names, none for [], or all others than those `without`.

    Where there is no other column than those `without`, the list is empty. With `empty`, an empty cell of a table, or a
    field of a line of JSON that is null or empty, is None. Columns that are passed over are printed.

    InputError for a file that cannot be read, or has none of the fields.
    """
    path = args.items
    table = open_table(path, ReadSettings("items", args.format, args.encoding, not args.no_quotes, args.item_names))
    item = find_column(table, "item", args.item_column, also=("id",))
    with tempfile.TemporaryDirectory() as folder, workspace(Path(folder) / "items", {"file": str(path)}) as tables:
        there = field_names(tables, table, Path(folder)) if table.rows_name_fields else table.columns
        wanted = [name for name in there if name not in without] if only is None else only
        fields = [name for name in wanted if name in there and name != item]
        if not fields and only is None:
            return []
        if not fields and only != []:
            raise InputError(f"{path} has none of the columns {', '.join(only)}.")
        others = [name for name in there if name not in (*fields, item)] if only else []
        if others:
            print(f"{path}: passed over {', '.join(others)}, since items have the fields {', '.join(only)} alone")
        if empty and table.format == "jsonl" and path.name.removesuffix(".gz").endswith(ENDINGS["jsonl"]):
            return fields_of_lines(path, item, fields)
        fields = fields or [item]  # where only ids are wanted
        tables.make("interactions", "SELECT NULL::VARCHAR AS item_name LIMIT 0")  # there are none here
        read_items(tables, Source(table, None, item, None, fields), Path(folder))
        tables.make("numbered", "SELECT row_number() OVER (ORDER BY first) - 1 AS id, * FROM item_texts")
        found = dict(item_texts(tables, "numbered", fields))
        if empty and not table.rows_name_fields:
            found = {row: {name: texts.get(name) for name in fields} for row, texts in found.items()}
        names = [name for (name,) in tables.rows("SELECT item_name FROM numbered ORDER BY id")]
        replaced = tables.count("item_lines") - len(names)
    if replaced:
        print(f"{path}: {replaced} rows that a later row of the same item replaces")
    return [(name, found[row]) for row, name in enumerate(names)]


def fields_of_lines(path: Path, item: str, only: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Read ids and fields of JSON lines, where a field that is there and empty is None; a later line replaces another.

    InputError for a damaged line, or one without an id; names it.
    """
    found = {}
    for number, record in read_jsonl(path, "Give JSON lines."):
        if is_missing(record.get(item)):
            raise InputError(f"{path}, line {number}: {item!r} is {shown(record.get(item))}, and no id.")
        fields = {name: record[name] for name in only if name in record}
        empty = {name for name, value in fields.items() if is_missing(value) or not has_text(value)}
        found[clean(str(record[item]))] = {name: None if name in empty else value for name, value in fields.items()}
    return list(found.items())
