"""Times in the forms in which files have them, as seconds."""

import math
from pathlib import Path
from typing import NamedTuple

from data_processing.parts.columns import Table, literal
from data_processing.parts.formats import places_of
from data_processing.parts.tables import Tables
from data_processing.parts.text_files import EXAMPLES
from utils.errors import InputError

NUMBER = "CASE WHEN isfinite(TRY_CAST(time AS DOUBLE)) THEN TRY_CAST(time AS DOUBLE) END"
MOMENT = """
    CASE WHEN regexp_matches(time, '^\\s*\\d{4}[-/]\\d{1,2}[-/]\\d{1,2}') THEN epoch(TRY_CAST(time AS TIMESTAMPTZ)) END
"""
DIGITS = "CASE WHEN regexp_full_match(time, '(19|20)(\\d{6}|\\d{12})') THEN %s END"
CLOCKS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p")
WORDS = (
    *("%a %b %d %H:%M:%S %z %Y", "%a %b %d %H:%M:%S %Y", "%a, %d %b %Y %H:%M:%S %z", "%a, %d %b %Y %H:%M:%S GMT"),
    *(date + clock for date in ("%b %d, %Y", "%B %d, %Y", "%d %b %Y", "%d %B %Y", "%m %d, %Y") for clock in CLOCKS),
)
NEARLY_ALL = 0.9
ORDERS = {"day/month/year": "dm", "month/day/year": "md"}

UNITS = {1e11: 1, 1e14: 1e3, 1e17: 1e6, math.inf: 1e9}  # numbers below 1e11 are seconds: up to the year 5138
RECENT = 1e8  # seconds: since March 1973


class Reading(NamedTuple):
    """A way to read times."""

    name: str  # for people
    seconds: str  # SQL of the column `time` of `said`, NULL where it is in another form
    formats: tuple[str, ...] = ()  # of strptime


def numeric_dates(order: str) -> tuple[str, ...]:
    """Formats of dates such as 31/12/2010 8:26; of the year two digits come first, since %Y would take them too."""
    days = [f"%{order[0]}{sign}%{order[1]}{sign}%" for sign in "/-."]
    return tuple(day + year + clock for day in days for year in "yY" for clock in CLOCKS)


def strptime(formats: tuple[str, ...]) -> str:
    """SQL of seconds by the first of some formats that fits; in UTC, where none is named.

    DuckDB would read the words infinity and epoch in every format.
    """
    read = f"epoch(try_strptime(trim(time), [{', '.join(map(literal, formats))}]))"
    return f"CASE WHEN regexp_matches(time, '\\d') THEN {read} END"


HALVES = tuple(f"%Y{sign}%m{sign}%d{clock}" for sign in "-/" for clock in CLOCKS[-2:])
DIGIT_DATES = ("%Y%m%d", "%Y%m%d%H%M%S")
COMMON = (  # the first that reads most
    Reading("dates of digits", DIGITS % strptime(DIGIT_DATES), DIGIT_DATES),
    Reading("a number", NUMBER),
    Reading("a date", MOMENT),
    *(Reading(name, strptime(numeric_dates(order)), numeric_dates(order)) for name, order in ORDERS.items()),
    Reading("dates in words", strptime(WORDS), WORDS),
    Reading("dates with AM and PM", strptime(HALVES), HALVES),
)


def find_reading(tables: Tables, formats: list[str] | None) -> Reading:
    """How to read the times of `said`: by the formats given, or in the way that reads most of them."""
    if formats is not None:
        return Reading(f"a time by --time_format {' '.join(formats)}", strptime(tuple(formats)), tuple(formats))
    total = tables.value("SELECT count(*) FROM said")
    best, most = COMMON[1], 0
    for reading in COMMON:
        count = tables.value(f"SELECT count({reading.seconds}) FROM said")
        if count > most:
            best, most = reading, count
        # Numbers are hardly ever dates by chance: among dates of digits, one that is none is a mistake, and no second.
        if most == total or (reading is COMMON[0] and count >= NEARLY_ALL * total):
            break
    return best


def check_times(tables: Tables, table: Table, column: str, formats: list[str] | None, beside: Path) -> Reading:
    """How times are read, which is told.

    Raises:
        InputError: times in another form, or in another unit, than most; names the lines. Dates of which nothing tells
            which number is the day and which the month.
    """
    reading = find_reading(tables, formats)
    time = f"the time ({column}) is"
    rows, count = first_rows(tables, f"({reading.seconds}) IS NULL")
    if count:
        value = tables.value("SELECT time FROM said WHERE line = ?", rows[0])
        found = f"{places_of(table, rows, count, beside)}: {time} {value!r}"
        if formats is not None:
            raise InputError(f"{found}, expected {reading.name}. Mend or remove the line, or give a further format.")
        kinds = [other.name for other in COMMON if reads(tables, other.seconds, value)]
        if kinds:
            raise InputError(f"{found}, {kinds[0]}, which most others are not. Write all in one way.")
        raise InputError(
            f"{found}, expected a number or a date such as 2023-01-31 or 2023-01-31T12:30:00Z. Mend the line, "
            "name the form with --time_format, or another column with --time_column."
        )
    if reading.name == "a number":
        largest = tables.value(f"SELECT max(abs({NUMBER})) FROM said") or 0
        rows, count = first_rows(tables, in_another_unit(NUMBER, largest))
        if count:
            value = tables.value("SELECT time FROM said WHERE line = ?", rows[0])
            raise InputError(
                f"{places_of(table, rows, count, beside)}: {time} {value}, in another unit than the largest, "
                f"{largest:.0f}. Write all in one unit, such as seconds."
            )
    elif formats is None and reading.name != "a date":
        tell_reading(tables, reading, table, column)
    return reading


def reads(tables: Tables, seconds: str, value: str | None) -> bool:
    """Whether SQL of seconds reads a time."""
    return tables.value(f"SELECT {seconds} FROM (SELECT ?::VARCHAR AS time)", value) is not None


def first_rows(tables: Tables, condition: str) -> tuple[list[int], int]:
    """The first lines of `said` that meet a condition, and how many do."""
    count = tables.value(f"SELECT count(*) FROM said WHERE {condition}")
    found = tables.rows(f"SELECT line FROM said WHERE {condition} ORDER BY line LIMIT {EXAMPLES}") if count else ()
    return [line for (line,) in found], count


def tell_reading(tables: Tables, reading: Reading, table: Table, column: str) -> None:
    """Print a form of dates that was recognised, with a time that decides where day and month might be exchanged.

    Raises:
        InputError: no time does.
    """
    if reading.name not in ORDERS:
        print(f"{table.path}: times ({column}) are read as {reading.name}")
        return
    first, second = (reading for reading in COMMON if reading.name in ORDERS)
    other = second if reading is first else first
    decides = tables.value(f"SELECT time FROM said WHERE {other.seconds} IS NULL ORDER BY line LIMIT 1")
    if decides is not None:
        print(f"{table.path}: times ({column}) are read as {reading.name}, as {decides} tells")
        return
    value = tables.value("SELECT time FROM said ORDER BY line LIMIT 1")
    fits = [next(form for form in way.formats if reads(tables, strptime((form,)), value)) for way in (first, second)]
    flags = " or ".join(f"--time_format '{form}'" for form in fits)
    raise InputError(
        f"{table.path}: the time ({column}), such as {value!r}, may be day/month or month/day: no number above 12 "
        f"tells. Say {flags}."
    )


def seconds(tables: Tables, formats: list[str] | None) -> str:
    """SQL of the time in seconds; of all numbers in the same unit, as the largest one tells."""
    reading = find_reading(tables, formats)
    if reading.name != "a number":
        return reading.seconds
    per_second = unit(tables.value(f"SELECT max(abs({NUMBER})) FROM said"))
    print(f"times: numbers, {per_second:.0f} to a second")
    return f"({NUMBER}) / {per_second:.0f}"


def unit(number: float) -> float:
    """Of a time: what a second is in it, as its size tells."""
    return next(per_second for limit, per_second in UNITS.items() if abs(number) < limit)


def in_another_unit(time: str, largest: float) -> str:
    """SQL that tells whether a time is a recent one in seconds, say, where the largest can only be milliseconds."""
    return f"abs({time}) >= {RECENT} AND abs({time}) < {RECENT * unit(largest)}"
