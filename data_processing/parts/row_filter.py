"""The filter of --keep: conditions in SQL on the columns of a file, checked before they are used."""

import json
from collections.abc import Collection, Iterator
from typing import Any

import duckdb

from data_processing.parts.columns import Table, columns_of, identifier
from data_processing.parts.missing import missing_in
from data_processing.parts.tables import Tables, first_line
from utils.errors import InputError

ALLOWED = {  # classes of nodes in DuckDB's syntax tree
    *("COMPARISON", "CONJUNCTION", "OPERATOR", "BETWEEN", "CONSTANT", "COLUMN_REF", "CAST", "TYPE", "CASE", "FUNCTION")
}
TYPES = {  # that a CAST may name; arrays may be of any size
    *("TINYINT", "SMALLINT", "INT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "REAL", "DOUBLE", "DECIMAL", "NUMERIC"),
    *("VARCHAR", "TEXT", "STRING", "CHAR", "BOOL", "BOOLEAN", "DATE", "TIME", "DATETIME", "TIMESTAMP", "TIMESTAMPTZ"),
}
KEEP = "--keep"
GROWING = {"array_resize", "bar", "format", "list_resize", "lpad", "printf", "rpad"}  # their results may be of any size
REFUSED = (duckdb.DataError, duckdb.ProgrammingError, duckdb.NotSupportedError)  # DuckDB's errors in what a user wrote


def parse_keep(text: str, table: Table, flag: str = KEEP, functions: Collection[str] | None = None) -> tuple[str, ...]:
    """Check a condition of a `flag`, and return the columns that it names.

    Functions are allowed if their result depends on nothing but their arguments; with `functions`, these alone are.

    Raises:
        InputError: not a single expression, or one with an unknown column, a subquery, an aggregate and so on.
    """
    try:
        with duckdb.connect() as connection:
            expression = str(duckdb.SQLExpression(text))
            tree = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT {expression}"]).fetchone()[0]
            pure = "SELECT bool_and(function_type = 'scalar' AND stability = 'CONSISTENT') FROM duckdb_functions()"
            pure = f"{pure} WHERE function_name = ?"
            nodes = list(syntax_nodes(json.loads(tree)["statements"][0]["node"]["select_list"]))
            kinds = {node["class"] for node in nodes} - ALLOWED
            kinds |= {node["type_name"].upper() for node in nodes if node["class"] == "TYPE"} - TYPES
            called = {node["function_name"] for node in nodes if node["class"] == "FUNCTION"}
            impure = {name for name in called if not connection.execute(pure, [name]).fetchone()[0]}
            kinds |= impure | (called & GROWING if functions is None else called - set(functions))
    except (duckdb.Error, TypeError) as error:  # a TypeError of text that is no Unicode
        raise unusable(text, first_line(error), table, flag) from error
    if kinds:
        raise unusable(text, f"{', '.join(sorted(kinds))} has no place here", table, flag)
    known = {sql_name(name): name for name in table.columns}
    named = [node["column_names"] for node in nodes if node["class"] == "COLUMN_REF"]
    missing = [".".join(names) for names in named if len(names) > 1 or sql_name(names[0]) not in known]
    if missing:
        raise unusable(text, f"there is no column {missing[0]!r}", table, flag)
    alike = [name for (name,) in named if sum(sql_name(name) == sql_name(other) for other in table.columns) > 1]
    if alike:
        raise unusable(text, f"several columns are called {alike[0]!r} but for upper and lower case", table, flag)
    return tuple(dict.fromkeys(known[sql_name(name)] for (name,) in named))


def sql_name(name: str) -> str:
    """The name of a column as DuckDB compares it, without regard to the case of A to Z."""
    return "".join(letter.lower() if letter.isascii() else letter for letter in name)


def syntax_nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield all nodes of the syntax tree of an expression, as DuckDB's parser gives it."""
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for part in tree:
            yield from syntax_nodes(part)


def unusable(text: str, why: str, table: Table, flag: str = KEEP) -> InputError:
    """The error for a condition that cannot be used."""
    return InputError(
        f"{flag} {text[:200]}: {why}; expected a condition on the columns, such as rating >= 4, event = 'purchase' or "
        f'"Book-Rating" > 5. {columns_of(table)}'
    )


def keep_rows(tables: Tables, rows: str, keep: dict[str, tuple[str, ...]], table: Table, flag: str = KEEP) -> int:
    """Remove the rows for which a condition is not true; returns how many.

    `keep` is condition -> the columns that it names. The table `rows` has the columns of `kept_columns` as text, under
    the names `kept_0`, `kept_1`, ….

    Raises:
        InputError: a condition that cannot be evaluated on the values, or that no row meets.
    """
    columns = kept_columns(keep)
    typed = [f"{as_type(tables, rows, f'kept_{number}')} AS {identifier(name)}" for number, name in enumerate(columns)]
    own = "line_of_row"
    while own in map(sql_name, columns):  # a column of the file may be called so
        own += "_"
    query = f"SELECT {', '.join([f'line AS {own}', *typed])} FROM {rows}"
    condition = " AND ".join(f"({duckdb.SQLExpression(text)})::BOOLEAN" for text in keep)
    try:
        left_out = tables.make("left_out", f"SELECT {own} AS line FROM ({query}) WHERE ({condition}) IS NOT TRUE")
    except REFUSED as error:
        raise unusable(" ".join(keep), first_line(error), table, flag) from error
    tables.connection.execute(f"DELETE FROM {rows} WHERE line IN (SELECT line FROM left_out)")
    if not tables.count(rows):
        raise InputError(f"{flag} {' '.join(keep)[:200]}: none of {left_out} rows is left. Give other conditions.")
    return left_out


def kept_columns(keep: dict[str, tuple[str, ...]]) -> list[str]:
    """The columns that the conditions name, sorted."""
    return sorted(set().union(*keep.values()))


def as_type(tables: Tables, rows: str, column: str) -> str:
    """SQL of a column of text as numbers or truth values, if all values that are not missing can be read as such.

    Whole numbers become BIGINT, as a DOUBLE cannot distinguish long ids. If they are too long for it, or some begin
    with a zero, as article numbers do, they stay text.
    """
    value = f"CASE WHEN NOT {missing_in(column)} THEN trim({column}) END"
    kinds = (("BIGINT", r"-?(?:0|[1-9]\d{0,17})"), ("VARCHAR", r"-?\d+"), ("DOUBLE", ".*"), ("BOOLEAN", ".*"))
    for kind, form in kinds:
        typed = f"CASE WHEN regexp_full_match({value}, '{form}') THEN TRY_CAST({value} AS {kind}) END"
        if tables.value(f"SELECT count({value}) = count({typed}) FROM {rows}"):
            return f"nullif({typed}, 'nan')" if kind == "DOUBLE" else typed
    return column
