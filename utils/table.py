"""Make a table of rows of --results: means and deviations over seeds, and paired tests (docs/tables.md).

    python -m utils.table results.jsonl --where group="all users"
    python -m utils.table runs/*/results.jsonl --by dataset method group --metrics ndcg@10 --against RecGPT
    python -m utils.table results.jsonl --by training.width --where method=RecGPT group="all users" --output table.tex

Rows that have the same values of --by share a line, in which they differ by --over, and by no other setting of training
or evaluation. A key may be any of the rows; a dotted one, such as training.width, reaches into a nested object. The
best of a column is marked: among the lines that differ by the method only, or, where --by has no method, by the last
key of --by.

--against NAME tests every other line against the one of that method: by Student's paired t over seeds, where both have
three or more seeds in common, and over users, where rows name files of predict.py --per_user. Each of the two kinds is
corrected for the number of its comparisons (Holm).
"""

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import argparse
import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.alike import EVALUATION, OF_USERS, shared_settings
from utils.cli import parser, run
from utils.errors import InputError, shown
from utils.files import check_writable, read_jsonl
from utils.paired import Difference, Users, holm, mean_differences, paired_t, user_values
from utils.table_files import FORMATS, Styled, text_lines, write_tables

REMEDY = "Give files that predict.py or eval.py wrote (--results)."
METHOD = "method"
LOWER_IS_BETTER = ("loss", "published")
NO_VALUE = object()
LARGEST = 2**500  # of a metric: its square is a float
WHOLE = 2**53  # floats below it that are whole are written as whole numbers
FEWEST_SEEDS = 3  # of which differences are tested over seeds


class Row(NamedTuple):
    """One result, and where it stands."""

    path: Path
    line: int
    values: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}"


class Group(NamedTuple):
    """A line of the table: the rows that have the same values of --by."""

    key: tuple[str, ...]  # these values, written out
    rows: dict[str, Row]  # by the value of --over, written out

    def numbers(self, metric: str) -> dict[str, float]:
        """The finite values of a metric, by the value of --over."""
        found = {over: number(row.values, metric) for over, row in self.rows.items()}
        return {over: value for over, value in found.items() if value is not None}


class Cell(NamedTuple):
    """A metric over seeds."""

    mean: float | None
    deviation: float | None  # sample standard deviation; None for fewer than two seeds
    count: int


class Comparison(NamedTuple):
    """What a line has more than the one of --against, tested in one way."""

    key: tuple[str, ...]
    metric: str
    kind: str  # "seeds" or "users"
    found: Difference
    count: int  # of seeds or users
    seeds: int  # that users' values are averaged over, or that are compared


def main() -> None:
    """Read, group, print, write."""
    args = parse()
    rows = list(read_rows(args.files, args.where))
    rows = having(rows, args.metrics)
    check_keys(rows, [*args.by, args.over])
    groups = grouped(rows, args.by, args.over, args.last)
    compared = args.by.index(METHOD) if METHOD in args.by else len(args.by) - 1
    check_alike(groups, {*args.by, args.over}, compared)
    cells = {group.key: [cell(group.numbers(metric).values()) for metric in args.metrics] for group in groups}
    comparisons = compare_all(groups, args.metrics, compared, args.against) if args.against else []
    corrected = correct(comparisons)

    tables = [value_table(args.by, args.metrics, cells, compared)]
    if comparisons:
        tables.append(difference_table(args.by, comparisons, corrected, args.against, args.over))
    for table in tables:
        print("\n".join(text_lines(*table)), end="\n\n")
    print("\n".join(notes(args, cells, comparisons)))
    if args.output:
        flat = flat_table(args.by, args.metrics, cells, comparisons, corrected)
        write_tables(args.output, tables, flat)
        print(f"wrote {args.output}")


def parse() -> argparse.Namespace:
    """The command line."""
    flags = parser(__doc__)
    flags.add_argument("files", nargs="+", type=Path, metavar="FILE.jsonl", help="rows of predict.py or eval.py")
    flags.add_argument("--by", nargs="+", default=["dataset", METHOD], metavar="KEY", help="what makes a line")
    flags.add_argument("--over", default="seed", metavar="KEY", help="what means and deviations are over")
    flags.add_argument("--metrics", nargs="+", default=["hit@5", "ndcg@5"], metavar="KEY", help="the columns")
    flags.add_argument(
        "--where", nargs="+", type=condition, default=[], metavar="KEY=VALUE", help="read only the rows that have it"
    )
    flags.add_argument("--against", metavar="NAME", help="method that all others are tested against")
    flags.add_argument("--last", action="store_true", help="of rows given twice take the last one")
    flags.add_argument("--output", metavar=f"FILE{'|'.join(FORMATS)}", help="write the table, by the name's ending")
    args = flags.parse_args()
    args.by, args.metrics = list(dict.fromkeys(args.by)), list(dict.fromkeys(args.metrics))
    if args.output:
        if Path(args.output).suffix not in FORMATS:
            raise InputError(f"--output {args.output}: expected a name that ends in one of {', '.join(FORMATS)}.")
        check_writable(args.output)
    return args


def condition(text: str) -> tuple[str, str]:
    """argparse type for KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, text_of(json.loads(value))
    except (ValueError, RecursionError):  # no JSON: it is text as it is
        return key, value


# Rows


def read_rows(paths: Iterable[Path], where: Sequence[tuple[str, str]]) -> Iterable[Row]:
    """Read the rows of files that have all values of `where`; InputError where a file is damaged or missing."""
    for path in paths:
        for line, values in read_jsonl(path, REMEDY):
            if all(written(values, key) == value for key, value in where):
                yield Row(path, line, values)


def value_of(values: Mapping[str, Any], key: str, otherwise: Any = None) -> Any:
    """The value of a key, or of a dotted one in nested objects; `otherwise` where there is none.

    >>> value_of({"training": {"width": 64}}, "training.width")
    64
    """
    if key in values:
        return values[key]
    first, _, rest = key.partition(".")
    inner = values.get(first)
    return value_of(inner, rest, otherwise) if rest and isinstance(inner, dict) else otherwise


def written(values: Mapping[str, Any], key: str) -> str:
    """The value of a key as it is typed for --where and stands in the table."""
    return text_of(value_of(values, key))


def text_of(value: Any) -> str:
    """Text as it is, all else as JSON; numbers that are equal have the same text.

    >>> text_of(1.0), text_of(1), text_of("1.0"), text_of(None)
    ('1', '1', '1.0', 'null')
    """
    if isinstance(value, float) and abs(value) < WHOLE and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def number(values: Mapping[str, Any], metric: str) -> float | None:
    """A metric of a row, None where it has none or one that is not finite."""
    value = value_of(values, metric)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < LARGEST else None


def having(rows: list[Row], metrics: Sequence[str]) -> list[Row]:
    """The rows that have one of the metrics; InputError where there is a metric that none has."""
    if not rows:
        raise InputError(f"no row is left. Loosen --where, or give other files. {REMEDY}")
    for metric in metrics:
        if all(number(row.values, metric) is None for row in rows):
            numbers = dict.fromkeys(key for row in rows for key in row.values if number(row.values, key) is not None)
            there = ", ".join(key for key in numbers if "@" in key or key in ("mrr", *LOWER_IS_BETTER))
            raise InputError(f"--metrics {metric}: no row has such a number. There are {there or 'none'}.")
    kept = [row for row in rows if any(number(row.values, metric) is not None for metric in metrics)]
    if len(kept) < len(rows):
        print(f"{len(rows) - len(kept)} of {len(rows)} rows are left out: they have none of the metrics")
    return kept


def check_keys(rows: Sequence[Row], keys: Sequence[str]) -> None:
    """InputError where no row has a key."""
    for key in keys:
        if all(value_of(row.values, key, NO_VALUE) is NO_VALUE for row in rows):
            known = {name: None for row in rows for name in row.values}
            known |= {f"{name}.{part}": None for row in rows for name in row.values for part in parts(row.values[name])}
            near = difflib.get_close_matches(key[:60], known, n=1, cutoff=0.7)
            said = f" ({near[0]}?)" if near else ""
            raise InputError(
                f"{key}: no row has this key{said}. Name another with --by or --over; rows of older versions have "
                "fewer keys, and are written anew by the same command."
            )


def parts(value: Any) -> Iterable[str]:
    """The keys of a nested object."""
    return value if isinstance(value, dict) else ()


def grouped(rows: Sequence[Row], by: Sequence[str], over: str, last: bool) -> list[Group]:
    """Rows by their values of `by`, each group by those of `over`; of two that have the same the `last`, or InputError.

    The order is that of the rows, in which groups that differ in the last key of `by` only stand together.
    """
    groups: dict[tuple[str, ...], Group] = {}
    for row in rows:
        key = tuple(written(row.values, name) for name in by)
        group = groups.setdefault(key, Group(key, {}))
        value = written(row.values, over)
        if value in group.rows and not last:
            raise twice(group.rows[value], row, [*by, over])
        group.rows[value] = row
    for group in groups.values():
        if len(group.rows) > 1 and (unknown := group.rows.get("null")):
            raise InputError(
                f"{unknown}: {over} is not known, and other rows of {' '.join(group.key)} have one. Remove the row, or "
                "name another key with --over, for example date."
            )
    blocks = {key[:-1]: number for number, key in reversed(list(enumerate(groups)))}
    return sorted(groups.values(), key=lambda group: blocks[group.key[:-1]])


def twice(first: Row, second: Row, keys: Sequence[str]) -> InputError:
    """What to say of two rows that have the same values of all keys: the one in which they differ, or --last."""
    same = ", ".join(f"{key} {written(second.values, key)}" for key in keys)
    plain = [key for key, value in second.values.items() if isinstance(value, (str, bool)) and key != "date"]
    known = [*settings_of(first), *settings_of(second), *plain]  # a setting says more than the name of a checkpoint
    differing = [key for key in known if written(first.values, key) != written(second.values, key)]
    remedy = "They are one result written twice: give --last to take the last one."
    if differing:
        key = differing[0]
        values = f"{shown(value_of(first.values, key))} and {shown(value_of(second.values, key))}"
        remedy = (
            f"They differ in {key}, {values}: add it to --by, choose one with --where, or give --last to take the last "
            "one."
        )
    return InputError(f"{first}, and {second}, both have {same}. {remedy}")


def check_alike(groups: Sequence[Group], named: set[str], compared: int) -> None:
    """InputError where rows of a line differ in a setting, or rows of a block in one of evaluation.

    Settings that are `named` by --by or --over may differ.
    """
    named = named | {key.removeprefix("settings.") for key in named}
    first_of: dict[tuple[str, ...], Row] = {}
    for group in groups:
        rows = [*group.rows.values()]
        first = first_of.setdefault(block(group.key, compared), rows[0])
        pairs = [(rows[0], row, settings_of(rows[0]) | settings_of(row)) for row in rows[1:]]
        pairs.append((first, rows[0], dict.fromkeys((*EVALUATION, *OF_USERS))))
        for one, other, keys in pairs:
            for key in keys:
                if key not in named and written(one.values, key) != written(other.values, key):
                    raise InputError(
                        f"{one}, and {other}, are of different settings, which cannot be compared: {key} is "
                        f"{shown(value_of(one.values, key))} and {shown(value_of(other.values, key))}. Add {key} to "
                        "--by, or choose one with --where."
                    )


def settings_of(row: Row) -> dict[str, None]:
    """The keys of the settings that the rows of a line share."""
    config, training = (
        value if isinstance(value := row.values.get(name), dict) else {} for name in ("config", "training")
    )
    keys = ["dataset", METHOD, "group", *EVALUATION, *OF_USERS, *(f"config.{name}" for name in config)]
    return dict.fromkeys((*keys, *(f"training.{name}" for name in shared_settings(training))))


# Figures


def cell(values: Iterable[float]) -> Cell:
    """Mean, sample standard deviation and number of values.

    >>> cell([1.0, 3.0])
    Cell(mean=2.0, deviation=1.4142135623730951, count=2)
    """
    values = list(values)
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Cell(float(np.mean(values)) if values else None, deviation, len(values))


def block(key: Sequence[str], compared: int) -> tuple[str, ...]:
    """The values of --by without that of the key whose lines are compared."""
    return (*key[:compared], *key[compared + 1 :])


def compare_all(groups: Sequence[Group], metrics: Sequence[str], compared: int, name: str) -> list[Comparison]:
    """Test every line against the one of `name` in its block, in each way that seeds and files of users allow."""
    bases = {block(group.key, compared): group for group in groups if group.key[compared] == name}
    if not bases:
        there = ", ".join(dict.fromkeys(group.key[compared] for group in groups))
        raise InputError(f"--against {name}: there is no such line. There are {there}.")
    found = []
    for group in groups:
        base = bases.get(block(group.key, compared))
        if base is None or base is group:
            continue
        for metric in metrics:
            found += compare_seeds(group, base, metric)
            found += compare_users(group, base, metric)
    return found


def compare_seeds(group: Group, base: Group, metric: str) -> list[Comparison]:
    """The paired t over the seeds that two lines have in common; none for fewer than three."""
    ours, theirs = group.numbers(metric), base.numbers(metric)
    differences = np.array([value - theirs[over] for over, value in ours.items() if over in theirs])
    found = paired_t(differences) if len(differences) >= FEWEST_SEEDS else None
    count = len(differences)
    return [Comparison(group.key, metric, "seeds", found, count, count)] if found else []


def compare_users(group: Group, base: Group, metric: str) -> list[Comparison]:
    """The paired t over users, whose values are averaged over the seeds for which both lines name files of users."""
    pairs: list[tuple[Users, Users]] = []
    for over in group.rows.keys() & base.rows.keys():
        ours, theirs = (user_values(one.rows[over].values, one.rows[over].path, metric) for one in (group, base))
        if ours and theirs:
            pairs.append((ours, theirs))
    if not pairs:
        return []
    differences = mean_differences(pairs, f"{' '.join(group.key)} against {' '.join(base.key)}")
    found = paired_t(differences)
    return [Comparison(group.key, metric, "users", found, len(differences), len(pairs))] if found else []


def correct(comparisons: Sequence[Comparison]) -> list[float]:
    """The p of each comparison, corrected among those of its kind."""
    corrected = [math.nan] * len(comparisons)
    for kind in ("seeds", "users"):
        places = [place for place, one in enumerate(comparisons) if one.kind == kind]
        for place, p in zip(places, holm([comparisons[place].found.p for place in places]), strict=True):
            corrected[place] = p
    return corrected


# Tables


def value_table(
    by: Sequence[str], metrics: Sequence[str], cells: Mapping[tuple[str, ...], list[Cell]], compared: int
) -> tuple[list[str], list[list[Styled]], int]:
    """Header, lines and number of left columns of the table of means; the best of each block is marked."""
    best: dict[tuple[Any, ...], float] = {}
    for key, values in cells.items():
        for metric, one in zip(metrics, values, strict=True):
            if one.mean is not None:
                place = (metric, *block(key, compared))
                lower = metric in LOWER_IS_BETTER or metric.startswith("invalid@")
                better: Callable[..., float] = min if lower else max
                best[place] = better(best.get(place, one.mean), one.mean)
    lines = [
        [
            *(Styled(value) for value in key),
            *(
                styled(one, one.mean is not None and one.mean == best[metric, *block(key, compared)])
                for metric, one in zip(metrics, values, strict=True)
            ),
        ]
        for key, values in cells.items()
    ]
    return [*by, *metrics], lines, len(by)


def styled(one: Cell, best: bool) -> Styled:
    """A cell of the table: mean, deviation and number of seeds."""
    if one.mean is None:
        return Styled("–")
    deviation = "" if one.deviation is None else f" ± {one.deviation:.4f}"
    return Styled(f"{one.mean:.4f}", f"{deviation} ({one.count})", best)


def difference_table(
    by: Sequence[str], comparisons: Sequence[Comparison], corrected: Sequence[float], against: str, over: str
) -> tuple[list[str], list[list[Styled]], int]:
    """The same of the comparisons."""
    lines = []
    for one, p in zip(comparisons, corrected, strict=True):
        found = one.found
        unit = f"{one.count} users, mean of {one.seeds} {over}(s)" if one.kind == "users" else f"{one.count} {over}s"
        interval = f"[{found.low:+.4f}, {found.high:+.4f}]"
        values = (*one.key, one.metric, f"{found.mean:+.4f}", interval, probability(found.p), probability(p), unit)
        lines.append([Styled(value) for value in values])
    return [*by, "metric", f"against {against}", "95 % interval", "p", "p (Holm)", "paired t over"], lines, len(by) + 1


def probability(p: float) -> str:
    """A p as it is printed."""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def notes(
    args: argparse.Namespace, cells: Mapping[tuple[str, ...], list[Cell]], comparisons: Sequence[Comparison]
) -> Iterable[str]:
    """What is to be known of the tables."""
    yield f"mean ± standard deviation (number of values of {args.over}); a star marks the best"
    single = sum(one.count == 1 for values in cells.values() for one in values)
    if single:
        yield f"{single} cell(s) have one value of {args.over} only, marked (1): how far it varies is not known"
    if args.against:
        counts = {kind: sum(one.kind == kind for one in comparisons) for kind in ("seeds", "users")}
        yield (
            f"{counts['seeds']} comparison(s) over {args.over}s and {counts['users']} over users; p (Holm) is "
            "corrected for the number of its kind"
        )
        yield (
            f"over {args.over}s it takes {FEWEST_SEEDS} that both lines have, over users rows that name files of "
            "--per_user, and in any case differences that vary"
        )


def flat_table(
    by: Sequence[str],
    metrics: Sequence[str],
    cells: Mapping[tuple[str, ...], list[Cell]],
    comparisons: Sequence[Comparison],
    corrected: Sequence[float],
) -> list[dict[str, Any]]:
    """All figures in full precision, a dict for each line of the table of means."""
    lines = {}
    for key, values in cells.items():
        lines[key] = dict(zip(by, key, strict=True))
        for metric, one in zip(metrics, values, strict=True):
            names = (metric, f"{metric} deviation", f"{metric} n")
            lines[key] |= dict(zip(names, one, strict=True))
    for one, p in zip(comparisons, corrected, strict=True):
        numbers = {"difference": one.found.mean, **one.found._asdict(), "p (Holm)": p, "n": one.count}
        del numbers["mean"]
        lines[one.key] |= {f"{one.metric} over {one.kind}: {name}": value for name, value in numbers.items()}
    return list(lines.values())


if __name__ == "__main__":
    run(main)
