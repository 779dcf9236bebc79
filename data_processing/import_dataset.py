"""Make a data set directory from files of interactions and items in the formats of shops, papers and other programs.

    python data_processing/import_dataset.py --interactions clicks.csv --items products.csv --output data/test/shop
    python data_processing/import_dataset.py --interactions ml-1m/ratings.dat --items ml-1m/movies.dat \\
        --output data/test/ml-1m
    python data_processing/import_dataset.py --interactions toys.inter --items toys.item --output data/test/toys \\
        --split time --split_time 2023-01-01
    python data_processing/import_dataset.py --check data/test/shop

INTERACTIONS has columns for user, item and time, ITEMS for the item and its texts: CSV, TSV, columns between blanks,
Parquet, JSON (lines, or one array), lines of dicts as Python prints them, RecBole's .inter and .item, MovieLens' u.data
and u.item, ratings.dat and movies.dat, ratings.csv and movies.csv, MIND's behaviors.tsv and news.tsv. Text may be
gzip-compressed under a name that ends in .gz. Quotation marks inside a field are doubled or have a backslash. If the
first line has no names of columns, give them with --names. If an item has several rows, the last one counts. Rows
without user, item or time are left out, and their number is printed. Empty values and nan, NaN, NULL, null, None, NA,
N/A, n/a, <NA> and \\N count as missing, also as texts.

The text of an item consists of the columns that describe it, those with short values first, as the encoder cuts long
texts. Columns in which nearly all values are addresses, images, ids of items, numbers, dates or flags are left out, and
named; a column called title or name is always taken. --text_columns chooses others, in the order given.

Times are numbers (seconds, or fractions of them, which their size decides) or dates: 2023-01-31, 2023-01-31T12:30:00Z,
31.1.2023 12:30, 1/31/2023 12:30:00 PM, Fri Aug 25 13:55:02 -0700 2017, 20230131; for others give --time_format. If no
date shows which number is the day and which the month, it is required. Equal times keep the file's order.

A row may have a history: a column called history or item_id_list, or --history_column, has the items between blanks,
commas, semicolons or bars, or as a list, and the column of the item has what came after it (in MIND, what was clicked).
If each history of a user continues the one before, as in RecBole's benchmark files, each interaction is read once, in
order; at equal times, or without times, the shorter history comes first. The items of a first history get its time.

The filters come after --repeats, and are repeated until nothing changes: with the defaults the 5-core is left. The
catalog then consists of the items with interactions; --min_item_interactions 0 also keeps other items with text. Items
without text have a zero embedding. Files may be larger than memory: DuckDB sorts them, within --memory, in a hidden
file beside OUTPUT. A run that was killed resumes where it stopped.

The splits leave out lists with one item:
    leave_last_out   everyone is a test user, the last item is the target; train.pkl has the lists without it
    time             train.pkl has what was before --split_time; test.pkl has that and each user's next item, the target
    users            --test_share of the users are test users, with whole lists, as in the release
With the first two, the pieces in cold_test.pkl end with the target, as train.pkl has everything before it.

Writes to OUTPUT what make_dataset.py writes (test_times.pkl, in seconds, where there are times), with the names of
users as they were, and item_ids.jsonl with those of the items, {"id": 0, "item": "B00X"} and so on, for the lists of
predict.py --output. Names become numbers if all of them are whole numbers.
"""

import argparse
import contextlib
import datetime
import itertools
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import duckdb
import torch

from data_processing.parts import encoding
from data_processing.parts.check import check_directory
from data_processing.parts.columns import ReadSettings, Table, clean, columns_of, find_column, find_history
from data_processing.parts.formats import FORMATS, open_table
from data_processing.parts.interactions import REPEATS, Filters, Source, gather_histories, read_interactions, read_items
from data_processing.parts.row_filter import parse_keep
from data_processing.parts.splits import (
    SPLITS,
    Histories,
    Parts,
    SplitSettings,
    add_split_flags,
    item_texts,
    save_histories,
    split,
)
from data_processing.parts.tables import MEMORY, Tables, file_key, first_line, workspace
from data_processing.parts.times import units_per_second
from decoder import check_width
from utils.cli import non_negative_int, parser, positive_float, run
from utils.datasets import DATA_SET
from utils.errors import InputError, shown
from utils.files import load_matrix, staged_set
from utils.pickles import save_dict
from utils.util import add_device_flags, pick_device

MIND_TIME = ["%m/%d/%Y %I:%M:%S %p"]


def main() -> None:
    """Check a directory; or read the files, filter, split, embed the items, and write a data set directory."""
    args = parse()
    if args.check is not None:
        check(Path(args.check))
        return
    interactions, items = open_sources(args)
    output = Path(args.output)
    device = pick_device(args)
    if args.embeddings is None:
        encoding.require_encoder(args.encoder)
    else:
        check_given(args.embeddings)
    keep_textless = args.embeddings is not None
    filters = Filters(args.repeats, args.min_user_interactions, args.min_item_interactions, keep_textless)
    files = [file_key(source.table.path) for source in (interactions, items)]
    job = {"files": files, "read": [interactions, items], "options": [filters, args.embeddings]}
    with workspace(output, job, args.memory) as tables:
        read_interactions(tables, interactions, output)
        items = read_items(tables, items, output)
        histories = gather_histories(tables, interactions, items, filters)
        settings = SplitSettings(args.split, args.split_time, args.test_share, args.seed)
        parts = split(histories, settings, interactions.table.path)
        texts = dict(item_texts(tables, "items WHERE has_text", items.texts))
        matrix = item_embeddings(tables, items, texts, args, device)
        with matrix as metadata, staged_set(output, DATA_SET) as staging:
            save_histories(staging, tables, histories, parts, args.seed, last=args.split != "users")
            save_dict(staging / "item_text_dict.pkl", texts.items())
            encoding.save_metadata(staging, metadata)
        print_summary(tables, histories, parts, args)


def parse() -> argparse.Namespace:
    """Parse the command line, and report all flags that are missing or contradict each other at once."""
    flags = parser(__doc__)
    flags.add_argument("--interactions", metavar="FILE", help="who had which item, and when")
    flags.add_argument("--items", metavar="FILE", help="the items and their texts")
    flags.add_argument("--output", metavar="DIR", help="data set directory to write to")
    flags.add_argument("--check", metavar="DIR", help="list all that is wrong with a data set directory; nothing else")
    add_reading_flags(flags)
    flags.add_argument(
        "--text_columns", nargs="+", type=clean, metavar="NAME", help="describe an item, in this order; see above"
    )
    count = {"type": non_negative_int, "default": 5, "metavar": "N"}
    flags.add_argument("--min_user_interactions", **count, help="leave out users with fewer; 0 keeps everyone")
    flags.add_argument("--min_item_interactions", **count, help="the same of items; 0 also keeps items without any")
    flags.add_argument("--repeats", choices=REPEATS, default="keep", help="of items that a user has several times")
    flags.add_argument("--split", choices=SPLITS, default="leave_last_out", help="see above")
    flags.add_argument(
        "--split_time", type=time_or_proportion, metavar="T", help="a time, or a share of the interactions, such as 0.9"
    )
    add_split_flags(flags)
    encoding.add_encoder_flags(flags, "rows of ITEMS")
    flags.add_argument("--memory", type=positive_float, default=MEMORY, help="GiB for DuckDB, before it uses the disk")
    add_device_flags(flags)
    args = flags.parse_args()
    problems = find_problems(args)
    if problems:
        flags.error("; ".join(problems))
    return args


def add_reading_flags(flags: argparse.ArgumentParser) -> None:
    """Add the flags that say how the files are to be read."""
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


def time_or_proportion(text: str) -> float:
    """argparse type for --split_time: a number between 0 and 1, or a time, which becomes Unix seconds."""
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
    return number / units_per_second(number)


def strptime_format(text: str) -> str:
    """argparse type for --time_format: a format of strptime that DuckDB takes."""
    try:
        duckdb.execute("SELECT try_strptime('', ?)", [text]).fetchall()
    except duckdb.Error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no form of times ({first_line(error)})") from None
    return text


def find_problems(args: argparse.Namespace) -> list[str]:
    """What is wrong with the command line: flags that are missing, or that contradict each other."""
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
    """Print everything that is wrong with a data set directory; raise InputError if anything is."""
    report = check_directory(directory)
    for fault in report.faults:
        print(f"wrong: {fault}")
    for remark in report.remarks:
        print(f"remark: {remark}")
    if report.faults:
        raise InputError(f"{directory}: {len(report.faults)} kind(s) of fault, listed above.")
    print(f"{directory}: nothing wrong; {report.summary}")


def open_sources(args: argparse.Namespace) -> tuple[Source, Source]:
    """Find format and columns of both files, and print them."""
    formats, item_columns = args.format or [None], args.item_column or [None]
    settings = ReadSettings("interactions", formats[0], args.encoding, not args.no_quotes, args.names)
    table = open_table(Path(args.interactions), settings)
    interactions = interactions_source(table, item_columns[0], args)
    print_interactions(interactions)
    table = open_table(Path(args.items), replace(settings, role="items", format=formats[-1], names=args.item_names))
    named = item_columns[-1]
    if len(item_columns) == 1 and named is not None and clean(named) not in table.columns:
        named = None  # it is a column of the interactions alone
    item = find_column(table, "item", named, also=("id",))
    items = Source(table, None, item, None, named_text_columns(table, item, args))
    print(f"{table.path}: item {item}{'' if items.texts is None else ', text ' + ', '.join(items.texts)}")
    return interactions, items


def print_interactions(source: Source) -> None:
    """Print the columns that are read of the interactions, and warn if there is no item or no time among them."""
    table = source.table
    roles = {role: getattr(source, role) for role in ("user", "item", "history") if getattr(source, role)}
    print(f"{table.path}: {', '.join(map(' '.join, roles.items()))}, time {source.time or 'unknown'}")
    others = [name for name in table.columns if name not in (*roles.values(), source.time)]
    if source.item is None and others:
        print(
            f"warning: {table.path} has no column with a usual name for the item that came after a history. If it is "
            f"in {', '.join(others)}, name it with --item_column"
        )
    if source.time is None and source.history is None:
        print(
            f"warning: {table.path} has no column with a usual name for the time: the order of its rows counts, "
            "and the last item of a user's history may not be the latest. If it has times, name them with --time_column"
        )


def interactions_source(table: Table, item_name: str | None, args: argparse.Namespace) -> Source:
    """Find the columns of the interactions file.

    Raises:
        InputError: a column that does not exist, is named twice, or is needed by --split; a --keep that cannot be used.
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


def named_text_columns(table: Table, item: str, args: argparse.Namespace) -> list[str] | None:
    """The columns of --text_columns; None if the columns that describe an item are to be chosen by their values.

    Raises:
        InputError: a column that does not exist, or a file without any text.
    """
    missing = [name for name in args.text_columns or () if name not in table.columns and not table.rows_name_fields]
    if missing or (set(table.texts) <= {item} and not args.text_columns and args.embeddings is None):
        found = f"no column {missing[0]!r} (--text_columns)" if missing else "no column with text"
        raise InputError(f"{table.path}: {found}. {columns_of(table)}")
    return args.text_columns


def check_given(path: str) -> None:
    """Raise InputError if the matrix of --embeddings is missing or damaged, or of a width that no tokenizer takes."""
    matrix = load_matrix(path, "Leave out --embeddings to encode the texts.")
    check_width(matrix.shape[1], f"--embeddings {path}")


def item_embeddings(
    tables: Tables, items: Source, texts: dict[int, dict[str, Any]], args: argparse.Namespace, device: torch.device
) -> contextlib.AbstractContextManager[dict[str, Any]]:
    """Encode the texts or, with --embeddings, copy its rows, one for each row of the items file, in id order."""
    if args.embeddings is not None:
        rows = tables.columns("SELECT coalesce(last, 0) - 1 AS source_row FROM items ORDER BY id")["source_row"]
        expected, which = tables.count("item_rows"), f"one for each row of {args.items}"
        return encoding.given_embeddings(Path(args.output), Path(args.embeddings), rows, expected, which)
    if not texts:
        raise InputError(
            f"{items.table.path}: no item has any text in {', '.join(items.texts) or 'the columns that are left'}. "
            "Name other --text_columns, or give --embeddings."
        )
    to_encode = encoding.texts_to_encode(texts, items.table.path)
    encoder = encoding.load_encoder(args.encoder, device)
    check_width(encoder.get_embedding_dimension(), f"--encoder {args.encoder}")
    settings = encoding.Encoding(encoding.noted_name(args), encoder, args.batch_size)
    return encoding.encoded_embeddings(Path(args.output), to_encode, tables.count("items"), settings)


def print_summary(tables: Tables, histories: Histories, parts: Parts, args: argparse.Namespace) -> None:
    """Print what was made, and how much was left out or lacks something."""
    train, test = ((lengths > 0).sum() for lengths in parts)
    items = tables.count("items")
    print(f"{args.output}: {train} train users, {test} test users, {len(histories.items)} interactions, {items} items")
    lacking = "last IS NULL" if args.embeddings is not None else "NOT has_text"
    print_filtered(tables, args)
    unknown = tables.count("events JOIN items USING (item_number) WHERE last IS NULL")
    remarks = {
        "interactions left out, of those users and items, or as --repeats says": tables.count("interactions")
        - len(histories.items),
        "users left out for want of a history and a target": ((parts.train + parts.test) == 0).sum(),
        "rows of items that a later row replaces": tables.count("item_lines") - tables.count("item_texts"),
        f"interactions with items that {args.items} does not have": unknown,
        "items with a zero embedding, which are not recommended": tables.count(f"items WHERE {lacking}"),
    }
    for what, number in remarks.items():
        if number:
            print(f"  {number} {what}")


def print_filtered(tables: Tables, args: argparse.Namespace) -> None:
    """Print how many users and items the filters have left out, and how many of these items nobody had."""
    dropped_unused = "all_items ANTI JOIN items USING (item_number) WHERE NOT has_interactions"
    names = ("users", "all_users", "items", "all_items", dropped_unused)
    users, all_users, items, all_items, unused = map(tables.count, names)
    if (users, items) != (all_users, all_items):
        print(
            f"  {all_users - users} of {all_users} users and {all_items - items} of {all_items} items left out, "
            f"{unused} of which nobody had, by --min_user_interactions {args.min_user_interactions} and "
            f"--min_item_interactions {args.min_item_interactions}{named_items(tables)}. They can be recommended to "
            "nobody; 0 for both flags keeps all but items without text or user"
        )


def named_items(tables: Tables) -> str:
    """The first items that the filters have left out, in brackets; nothing where there are none."""
    rows = tables.rows("SELECT item_name FROM all_items ANTI JOIN items USING (item_number) LIMIT 4")
    names = [shown(name) for (name,) in rows]
    return f" ({', '.join(names[:3])}{' …' * (len(names) > 3)})" if names else ""


if __name__ == "__main__":
    run(main)
