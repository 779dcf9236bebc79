"""Times as files have them, numbers or dates in many forms, converted to seconds."""

import math
from pathlib import Path
from typing import NamedTuple

from data_processing.parts.columns import Table, literal
from data_processing.parts.formats import locate_where
from data_processing.parts.tables import Tables
from utils.errors import InputError

NUMBER = "CASE WHEN isfinite(TRY_CAST(time AS DOUBLE)) THEN TRY_CAST(time AS DOUBLE) END"
ISO_DATE = """
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


class TimeFormat(NamedTuple):
    """A form in which times are written."""

    name: str  # in messages
    seconds: str  # SQL of the column `time` of `interactions`, NULL where it is in another form
    formats: tuple[str, ...] = ()  # of strptime


def numeric_dates(order: str) -> tuple[str, ...]:
    """Formats of dates such as 31/12/2010 8:26; years of two digits come first, as %Y would read them, too."""
    days = [f"%{order[0]}{sign}%{order[1]}{sign}%" for sign in "/-."]
    return tuple(day + year + clock for day in days for year in "yY" for clock in CLOCKS)


def strptime(formats: tuple[str, ...]) -> str:
    """SQL of the seconds by the first of the formats that matches; in UTC, where the time names no zone.

    A time must have a digit: DuckDB would read the words infinity and epoch in every format.
    """
    read = f"epoch(try_strptime(trim(time), [{', '.join(map(literal, formats))}]))"
    return f"CASE WHEN regexp_matches(time, '\\d') THEN {read} END"


HALVES = tuple(f"%Y{sign}%m{sign}%d{clock}" for sign in "-/" for clock in CLOCKS[-2:])
DIGIT_DATES = ("%Y%m%d", "%Y%m%d%H%M%S")
COMMON = (  # of those that read equally many times, the first is taken
    TimeFormat("dates of digits", DIGITS % strptime(DIGIT_DATES), DIGIT_DATES),
    TimeFormat("a number", NUMBER),
    TimeFormat("a date", ISO_DATE),
    *(TimeFormat(name, strptime(numeric_dates(order)), numeric_dates(order)) for name, order in ORDERS.items()),
    TimeFormat("dates in words", strptime(WORDS), WORDS),
    TimeFormat("dates with AM and PM", strptime(HALVES), HALVES),
)


def find_format(tables: Tables, formats: list[str] | None) -> TimeFormat:
    """Find the form of the times in `interactions`: the formats given, or the one of COMMON that reads most of them."""
    if formats is not None:
        return TimeFormat(f"a time by --time_format {' '.join(formats)}", strptime(tuple(formats)), tuple(formats))
    total = tables.count("interactions")
    best, most = COMMON[1], 0
    for form in COMMON:
        count = tables.value(f"SELECT count({form.seconds}) FROM interactions")
        if count > most:
            best, most = form, count
        # Numbers are hardly ever dates of digits by chance: if nearly all are, the others are mistakes, not seconds.
        if most == total or (form is COMMON[0] and count >= NEARLY_ALL * total):
            break
    return best


def check_times(tables: Tables, table: Table, column: str, formats: list[str] | None, output: Path) -> TimeFormat:
    """Check that all times, in `column` of the file, have one form and one unit, and return the form.

    The form is that of `formats`, of strptime, or is recognised and printed.

    Raises:
        InputError: times in another form, or in another unit, than most; names the lines. Dates of which nothing shows
            which number is the day and which the month.
    """
    form = find_format(tables, formats)
    time = f"the time ({column}) is"
    unread = f"({form.seconds}) IS NULL"
    where = locate_where(tables, "interactions", unread, table, output)
    if where:
        value = first_time(tables, unread)
        found = f"{where}: {time} {value!r}"
        if formats is not None:
            raise InputError(f"{found}, expected {form.name}. Mend or remove the line, or give a further format.")
        others = [other.name for other in COMMON if reads(tables, other.seconds, value)]
        if others:
            raise InputError(f"{found}, {others[0]}, which most others are not. Write all in one way.")
        raise InputError(
            f"{found}, expected a number or a date such as 2023-01-31 or 2023-01-31T12:30:00Z. Mend the line, "
            "name the form with --time_format, or another column with --time_column."
        )
    if form.name == "a number":
        largest = tables.value(f"SELECT max(abs({NUMBER})) FROM interactions") or 0
        differs = in_another_unit(NUMBER, largest)
        where = locate_where(tables, "interactions", differs, table, output)
        if where:
            raise InputError(
                f"{where}: {time} {first_time(tables, differs)}, in another unit than the largest, {largest:.0f}. "
                "Write all in one unit, such as seconds."
            )
    elif formats is None and form.name != "a date":
        print_format(tables, form, table, column)
    return form


def reads(tables: Tables, seconds: str, value: str | None) -> bool:
    """Whether SQL of seconds can read a time."""
    return tables.value(f"SELECT {seconds} FROM (SELECT ?::VARCHAR AS time)", value) is not None


def first_time(tables: Tables, condition: str = "true") -> str | None:
    """The time of the first line of `interactions` that meets a condition."""
    return tables.value(f"SELECT time FROM interactions WHERE {condition} ORDER BY line LIMIT 1")


def print_format(tables: Tables, form: TimeFormat, table: Table, column: str) -> None:
    """Print the form of dates and, where day and month might be exchanged, the time that decides; one must do so."""
    if form.name not in ORDERS:
        print(f"{table.path}: times ({column}) are read as {form.name}")
        return
    first, second = (form for form in COMMON if form.name in ORDERS)
    other = second if form is first else first
    decisive = first_time(tables, f"{other.seconds} IS NULL")
    if decisive is not None:
        print(f"{table.path}: times ({column}) are read as {form.name}, as {decisive} tells")
        return
    value = first_time(tables)
    flags = " or ".join(
        next(f"--time_format '{text}'" for text in way.formats if reads(tables, strptime((text,)), value))
        for way in (first, second)
    )
    raise InputError(
        f"{table.path}: the time ({column}), such as {value!r}, may be day/month or month/day: no number above 12 "
        f"tells. Say {flags}."
    )


def seconds(tables: Tables, formats: list[str] | None) -> str:
    """SQL of the time in seconds; the largest number decides the unit of all."""
    form = find_format(tables, formats)
    if form.name != "a number":
        return form.seconds
    per_second = units_per_second(tables.value(f"SELECT max(abs({NUMBER})) FROM interactions"))
    print(f"times: numbers, {per_second:.0f} to a second")
    return f"({NUMBER}) / {per_second:.0f}"


def units_per_second(time: float) -> float:
    """Guess the unit of a time by its size: 1 for seconds, 1000 for milliseconds, and so on."""
    return next(per_second for limit, per_second in UNITS.items() if abs(time) < limit)


def in_another_unit(time: str, largest: float) -> str:
    """SQL that is true for a recent time in seconds, say, where the largest time can only be milliseconds."""
    return f"abs({time}) >= {RECENT} AND abs({time}) < {RECENT * units_per_second(largest)}"
