"""Make a data set directory of interactions and items as shops, papers and other programs keep them.

    python data_processing/import_dataset.py --interactions clicks.csv --items products.csv --output data/test/shop
    python data_processing/import_dataset.py --interactions ml-1m/ratings.dat --items ml-1m/movies.dat \\
        --output data/test/ml-1m
    python data_processing/import_dataset.py --interactions toys.inter --items toys.item --output data/test/toys \\
        --split time --split_time 2023-01-01
    python data_processing/import_dataset.py --check data/test/shop

INTERACTIONS has columns for user, item and time, ITEMS for the item and its texts: CSV, TSV, columns between blanks,
Parquet, JSON (lines, or one array), lines of dicts as Python prints them, RecBole's .inter and .item, MovieLens' u.data
and u.item, ratings.dat and movies.dat, ratings.csv and movies.csv, MIND's behaviors.tsv and news.tsv. Text may be
gzip-compressed under a name that ends in .gz. Quotation marks inside a field are doubled or have a backslash. Where the
first line has no names of columns, --names gives them. Of an item that is given twice the last row counts. Rows without
user, item or time are left out, and told: empty, nan, NaN, NULL, null, None, NA, N/A, n/a, <NA> and \\N are no values.
As texts they are none.

The text of an item has the columns that describe it, those with short values first, as the encoder cuts long texts.
Columns of which nearly all values are addresses, images, ids of items, numbers, dates or flags do not, and are named;
one called title or name always does.
--text_columns takes others, and in the order in which they are typed.

Times are numbers (seconds, or fractions of them, as their size tells) or dates: 2023-01-31, 2023-01-31T12:30:00Z,
31.1.2023 12:30, 1/31/2023 12:30:00 PM, Fri Aug 25 13:55:02 -0700 2017, 20230131; others by --time_format. Where only
that can tell the day from the month, it is asked for. Equal times keep the file's order.

A row may have a history: a column called history or item_id_list, or --history_column, with items between blanks,
commas, semicolons or bars, or as a list, and what came after it in the column of the item (in MIND's impressions, what
was clicked). Of rows that go on from each other, such as RecBole's benchmark files, each interaction is read once, in
order; at equal times, or without times, the shorter history comes first. The items of a user's first history have the
time of its row.

The filters come after --repeats, again and again until nothing changes: with the defaults the 5-core is left. The
catalog is then the items with interactions; --min_item_interactions 0 also keeps items with text that nobody had.
Items without text have a zero embedding. Files may be larger than memory: DuckDB sorts them, within --memory, in a
hidden file beside OUTPUT. A run that was killed goes on.

Splits, of which lists with one item are left out:
    leave_last_out   everyone is a test user, the last item is the target; train.pkl has the lists without it
    time             train.pkl has what was before --split_time; test.pkl that and each user's next item, the target
    users            --test_share of the users are test users, with whole lists, as in the release
With the first two the pieces in cold_test.pkl end with the target: all that comes before it is in train.pkl.

Writes to OUTPUT what make_dataset.py writes (test_times.pkl, in seconds, where there are times), with the names of
users as they were, and item_ids.jsonl with those of items, {"id": 0, "item": "B00X"} and so on, by which the lists of
predict.py --output are read back. Names are whole numbers where all of them are.
"""

import argparse
import contextlib
import datetime
import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: let the repository root be found
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import duckdb
import numpy as np

from data_processing.parts.check import check_directory
from data_processing.parts.columns import Table, clean, columns_of, find_column, find_history
from data_processing.parts.encoding import (
    DEFAULT_BATCH,
    DEFAULT_ENCODER,
    Encoding,
    embedding_matrix,
    given_rows,
    load_encoder,
    require_encoder,
    save_metadata,
    written_texts,
)
from data_processing.parts.formats import FORMATS, open_table
from data_processing.parts.interactions import REPEATS, Source, gather, read_files
from data_processing.parts.row_filter import parse_keep
from data_processing.parts.splits import SPLITS, Histories, add_split_flags, save_histories, split
from data_processing.parts.tables import MEMORY, Tables, first_line, source, workspace
from data_processing.parts.times import unit
from decoder import check_width
from utils.cli import non_negative_int, parser, positive_float, positive_int, run
from utils.datasets import DATA_SET
from utils.errors import InputError
from utils.files import load_matrix, staged_set
from utils.pickles import save_dict
from utils.util import add_device_flags, pick_device

MIND_TIME = ["%m/%d/%Y %I:%M:%S %p"]


def main() -> None:
    """Check a directory; or look at the files, read, filter, split, embed, write."""
    args = parse()
    if args.check is not None:
        check(Path(args.check))
        return
    interactions, items = open_sources(args)
    output = Path(args.output)
    device = pick_device(args)
    if args.embeddings is None:
        require_encoder(args.encoder)
    else:
        load_given(args.embeddings)
    with workspace(output, job_of(args, interactions, items), args.memory) as tables:
        items = read_files(tables, interactions, items, output)
        histories = gather(tables, args, interactions)
        parts = split(histories, args)
        texts = item_texts(tables, items.texts)
        if args.embeddings is not None:
            matrix = embedding_rows(tables, args)
        elif not texts:
            raise InputError(
                f"{items.table.path}: no item has any text in {', '.join(items.texts) or 'the columns that are left'}. "
                "Name other --text_columns, or give --embeddings."
            )
        else:
            written = written_texts(texts, items.table.path)
            encoding = Encoding(load_encoder(args.encoder, device), args.batch_size, device)
            check_width(encoding.encoder.get_embedding_dimension(), f"--encoder {args.encoder}")
            count = tables.value("SELECT count(*) FROM items")
            matrix = embedding_matrix(output, written, count, encoding, args.encoder)
        write(tables, histories, parts, args, texts, matrix)
        tell(tables, histories, parts, args)


def parse() -> argparse.Namespace:
    """The command line."""
    flags = parser(__doc__)
    flags.add_argument("--interactions", metavar="FILE", help="who had which item, and when")
    flags.add_argument("--items", metavar="FILE", help="the items and their texts")
    flags.add_argument("--output", metavar="DIR", help="data set directory to write to")
    flags.add_argument("--check", metavar="DIR", help="tell all that is wrong with a data set directory; nothing else")
    add_reading_flags(flags)
    flags.add_argument(
        "--text_columns", nargs="+", type=clean, metavar="NAME", help="describe an item, in this order; see above"
    )
    count = {"type": non_negative_int, "default": 5, "metavar": "N"}
    flags.add_argument("--min_user_interactions", **count, help="leave out users with fewer; 0 keeps everyone")
    flags.add_argument("--min_item_interactions", **count, help="the same of items; 0 keeps also what nobody had")
    flags.add_argument("--repeats", choices=REPEATS, default="keep", help="of items that a user has several times")
    flags.add_argument("--split", choices=SPLITS, default="leave_last_out", help="see above")
    flags.add_argument(
        "--split_time", type=moment, metavar="T", help="a time, or a share of the interactions, such as 0.9"
    )
    add_split_flags(flags)
    given = flags.add_mutually_exclusive_group()
    given.add_argument("--encoder", default=DEFAULT_ENCODER, help="sentence-transformers model or local directory")
    given.add_argument("--embeddings", metavar="FILE", help=".npy (rows of ITEMS, width) to use instead of an encoder")
    flags.add_argument("--batch_size", type=positive_int, default=DEFAULT_BATCH, help="texts encoded at once")
    flags.add_argument("--memory", type=positive_float, default=MEMORY, help="GiB for DuckDB, before it uses the disk")
    add_device_flags(flags)
    args = flags.parse_args()
    problems = wrong_together(args)
    if problems:
        flags.error("; ".join(problems))
    return args


def add_reading_flags(flags: argparse.ArgumentParser) -> None:
    """Flags that say how the files are to be read."""
    both = "one for both files, or one for each"
    flags.add_argument(
        "--format", nargs="+", choices=FORMATS, default=[], help=f"guessed from names and contents, or: {both}"
    )
    flags.add_argument("--encoding", help="of text files, such as latin-1; utf-8 by default")
    flags.add_argument("--no_quotes", action="store_true", help='" is an ordinary character of CSV and TSV')
    flags.add_argument(
        "--names", nargs="+", metavar="NAME", help="of the columns, if INTERACTIONS has no line of names"
    )
    flags.add_argument("--item_names", nargs="+", metavar="NAME", help="the same of ITEMS")
    flags.add_argument("--user_column", metavar="NAME", help="where it has no usual name")
    flags.add_argument("--item_column", nargs="+", metavar="NAME", default=[], help=f"the same, of the item: {both}")
    flags.add_argument("--time_column", metavar="NAME", help="the same, of the time")
    flags.add_argument("--history_column", metavar="NAME", help="the same, of a list of the items before")
    example = "of times, such as '%%d/%%m/%%Y %%H:%%M'; of several the first that fits"
    flags.add_argument("--time_format", nargs="+", type=strptime_format, metavar="FORM", help=example)
    flags.add_argument(
        "--keep",
        nargs="+",
        action="extend",
        metavar="CONDITION",
        help="leave out other interactions: 'rating >= 4', \"event = 'purchase'\"; of several all must be true",
    )


def moment(text: str) -> float:
    """argparse type for --split_time: a share between 0 and 1, or Unix seconds."""
    try:
        number = float(text)
    except ValueError:
        try:
            date = datetime.datetime.fromisoformat(text.replace("/", "-"))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is neither a number nor a date such as 2023-01-31 or 2023-01-31T12:30:00"
            ) from None
        return date.replace(tzinfo=date.tzinfo or datetime.UTC).timestamp()
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not finite")
    return number / unit(number)


def strptime_format(text: str) -> str:
    """argparse type for --time_format."""
    try:
        duckdb.execute("SELECT try_strptime('', ?)", [text]).fetchall()
    except duckdb.Error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no form of times ({first_line(error)})") from None
    return text


def wrong_together(args: argparse.Namespace) -> list[str]:
    """Flags that are missing, or that contradict each other."""
    problems = []
    needed = ("interactions", "items", "output")
    missing = [f"--{name}" for name in needed if getattr(args, name) is None]
    if args.check is None and missing:
        problems.append(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    if args.check is not None and len(missing) < len(needed):
        problems.append("--check goes without --interactions, --items and --output")
    problems += [f"--{name} takes one or two" for name in ("format", "item_column") if len(getattr(args, name)) > 2]
    if args.split_time is not None and args.split != "time":
        problems.append("--split_time needs --split time")
    if args.encoding is not None:
        try:
            "".encode(args.encoding)
        except (LookupError, UnicodeError):
            problems.append(f"--encoding {args.encoding} is unknown; latin-1 and cp1252, for example, are not")
    return problems


def check(directory: Path) -> None:
    """Print all that is wrong with a data set directory.

    Raises:
        InputError: something is.
    """
    report = check_directory(directory)
    for fault in report.faults:
        print(f"wrong: {fault}")
    for remark in report.remarks:
        print(f"remark: {remark}")
    if report.faults:
        raise InputError(f"{directory}: {len(report.faults)} kind(s) of fault, listed above.")
    print(f"{directory}: nothing wrong; {report.summary}")


def open_sources(args: argparse.Namespace) -> tuple[Source, Source]:
    """Both files and their columns, told to the user.

    Raises:
        InputError: see `open_table` and `find_column`; no text column, unless embeddings are given.
    """
    kinds, names = args.format or [None], args.item_column or [None]
    quotes = not args.no_quotes
    table = open_table(Path(args.interactions), "interactions", kinds[0], args.encoding, quotes, args.names)
    interactions = interactions_source(table, names[0], args)
    roles = {role: getattr(interactions, role) for role in ("user", "item", "history") if getattr(interactions, role)}
    print(f"{table.path}: {', '.join(map(' '.join, roles.items()))}, time {interactions.time or 'unknown'}")
    others = [name for name in table.columns if name not in (*roles.values(), interactions.time)]
    if interactions.item is None and others:
        print(
            f"warning: {table.path} has no column with a usual name for the item that came after a history. If it is "
            f"in {', '.join(others)}, name it with --item_column"
        )
    if interactions.time is None and interactions.history is None:
        print(
            f"warning: {table.path} has no column with a usual name for the time: the order of its rows counts, "
            "and the last item of a user's history may not be the latest. If it has times, name them with --time_column"
        )

    table = open_table(Path(args.items), "items", kinds[-1], args.encoding, quotes, args.item_names)
    name = names[-1]
    if len(names) == 1 and name is not None and clean(name) not in table.columns:  # of the interactions alone
        name = None
    item = find_column(table, "item", name, also=("id",))
    items = Source(table, None, item, None, text_columns(table, item, args))
    print(f"{table.path}: item {item}{'' if items.texts is None else ', text ' + ', '.join(items.texts)}")
    return interactions, items


def interactions_source(table: Table, item_name: str | None, args: argparse.Namespace) -> Source:
    """The columns of the interactions file.

    Raises:
        InputError: a column that is not there, is named twice, or is needed by --split; a --keep that cannot be used.
    """
    item = find_column(table, "item", item_name, ("clicked",), optional=True)
    history = find_history(table, args.history_column, item)
    found = Source(
        table,
        find_column(table, "user", args.user_column),
        item if history is not None else find_column(table, "item", item_name),
        find_column(table, "time", args.time_column, optional=True),
        None,
        history,
        args.time_format or (MIND_TIME if table.format == "mind" else None),
        {text: parse_keep(text, table) for text in args.keep or ()},
    )
    for one, other in itertools.combinations(("user", "item", "time", "history"), 2):
        column = getattr(found, one)
        if column is not None and column == getattr(found, other):
            raise InputError(
                f"{table.path}: {column!r} is named for the {one} and for the {other}. Name another column "
                f"with --{one}_column or --{other}_column. {columns_of(table)}"
            )
    if found.time is None and args.split == "time":
        raise InputError(
            f"{table.path} has no column with a usual name for the time, which --split time needs. Name it with "
            f"--time_column. {columns_of(table)}"
        )
    if found.time is None and args.time_format is not None:
        raise InputError(f"--time_format: {table.path} has no column for the time. Name it with --time_column.")
    return found


def text_columns(table: Table, item: str, args: argparse.Namespace) -> list[str] | None:
    """Names of the columns that describe an item, as named by the user; None where their values are to tell.

    Raises:
        InputError: a column that is not there, or none at all.
    """
    missing = [name for name in args.text_columns or () if name not in table.columns and not table.rows_name_fields]
    if missing or (set(table.texts) <= {item} and not args.text_columns and args.embeddings is None):
        found = f"no column {missing[0]!r} (--text_columns)" if missing else "no column with text"
        raise InputError(f"{table.path}: {found}. {columns_of(table)}")
    return args.text_columns


def job_of(args: argparse.Namespace, interactions: Source, items: Source) -> dict[str, Any]:
    """What decides the contents of the tables."""
    options = ("min_user_interactions", "min_item_interactions", "repeats", "embeddings")
    return {
        "files": [source(interactions.table.path), source(items.table.path)],
        "read": [interactions, items],
        "options": [getattr(args, name) for name in options],
    }


def write(
    tables: Tables,
    histories: Histories,
    parts: tuple[np.ndarray, np.ndarray],
    args: argparse.Namespace,
    texts: dict[int, dict[str, Any]],
    matrix: contextlib.AbstractContextManager,
) -> None:
    """Write the data set: lists, texts, names of items, and the embeddings that `matrix` makes."""
    with matrix as metadata, staged_set(Path(args.output), DATA_SET) as staging:
        save_histories(staging, tables, histories, parts, args.seed, last=args.split != "users")
        save_dict(staging / "item_text_dict.pkl", texts.items())
        save_metadata(staging, metadata)


def item_texts(tables: Tables, columns: list[str]) -> dict[int, dict[str, Any]]:
    """Item id -> text fields, ascending, of the items that have text."""
    return {
        item: {name: json.loads(field) for name, field in zip(columns, fields, strict=True) if field is not None}
        for item, fields in tables.rows("SELECT id, fields FROM items WHERE has_text ORDER BY id")
    }


def load_given(path: str) -> np.ndarray:
    """The matrix of --embeddings (rows, E).

    Raises:
        InputError: missing or damaged file, or of a width that no tokenizer takes.
    """
    matrix = load_matrix(path, "Leave out --embeddings to encode the texts.")
    check_width(matrix.shape[1], f"--embeddings {path}")
    return matrix


def embedding_rows(tables: Tables, args: argparse.Namespace) -> contextlib.AbstractContextManager:
    """Copies the items' rows of --embeddings, which has those of the items file; see `make_dataset.given_rows`."""
    source = Path(args.embeddings)
    rows = tables.columns("SELECT coalesce(last, 0) - 1 AS source_row FROM items ORDER BY id")["source_row"]
    expected = tables.value("SELECT count(*) FROM item_rows")
    return given_rows(Path(args.output), source, rows, expected, f"one for each row of {args.items}")


def tell(tables: Tables, histories: Histories, parts: tuple[np.ndarray, np.ndarray], args: argparse.Namespace) -> None:
    """Print what was made, and what was left out or lacks something."""
    train, test = ((lengths > 0).sum() for lengths in parts)
    items = tables.value("SELECT count(*) FROM items")
    print(f"{args.output}: {train} train users, {test} test users, {len(histories.items)} interactions, {items} items")
    lacking = "last IS NULL" if args.embeddings is not None else "NOT has_text"
    neither = ((parts[0] + parts[1]) == 0).sum()
    tell_left_out(tables, args)
    remarks = {
        "interactions left out by --repeats and the filters": tables.value("SELECT count(*) FROM said")
        - len(histories.items),
        "users left out for want of a history and a target": neither,
        "rows of items that a later row replaces": tables.value("SELECT count(*) FROM item_lines")
        - tables.value("SELECT count(*) FROM described"),
        f"interactions with items that {args.items} does not have": tables.value(
            "SELECT count(*) FROM events JOIN items USING (item) WHERE last IS NULL"
        ),
        "items with a zero embedding, which are not recommended": tables.value(
            f"SELECT count(*) FROM items WHERE {lacking}"
        ),
    }
    for what, number in remarks.items():
        if number:
            print(f"  {number} {what}")


def tell_left_out(tables: Tables, args: argparse.Namespace) -> None:
    """Print how many users and items the filters have left out; unused are items that nobody had."""
    users, all_users, items, all_items, unused = (
        tables.value(f"SELECT count(*) FROM {rows}")
        for rows in ("users", "people", "items", "things", "things ANTI JOIN items USING (item) WHERE NOT had")
    )
    if (users, items) != (all_users, all_items):
        print(
            f"  {all_users - users} of {all_users} users and {all_items - items} of {all_items} items left out, "
            f"{unused} of which nobody had, by --min_user_interactions {args.min_user_interactions} and "
            f"--min_item_interactions {args.min_item_interactions}; 0 keeps them, but no item without text or user"
        )


if __name__ == "__main__":
    run(main)
