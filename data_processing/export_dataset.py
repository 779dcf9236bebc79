"""Write a data set directory in the files of another program, with the shop's own names of users and items.

    python data_processing/export_dataset.py --dataset my_shop --recbole dataset/my_shop

With --recbole these are RecBole's atomic files, DIR/NAME.inter and DIR/NAME.item, where NAME is the directory's own:

    user_id:token   item_id:token   timestamp:float         every interaction, by user, in the order of the history
    item_id:token   title:token_seq   brand:token_seq       every item of the catalog, with its text fields

A user's history is the list of test.pkl, or that of train.pkl where test.pkl does not go on from it. Times are those of
test_times.pkl; a user without has 0, 1, 2, … for the interactions. The split is not written: RecBole makes its own.

Tabs, line breaks and zero bytes in texts become blanks, and half characters become question marks; lists become their
values between blanks; numbers and objects become JSON. How often is printed. A name of a user or an item that has one
of these signs is refused. A quotation mark that begins a value gets a blank in front, as RecBole would read on to the
next one; import_dataset.py takes that blank away again.

The command that reads the files back is printed, too. What it makes is equal to a data set of import_dataset.py with
times and the default split, but for texts that were changed; of other splits the histories are equal.
"""

import argparse
import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

from data_processing.parts import merging
from data_processing.parts.columns import clean
from data_processing.parts.missing import is_missing
from utils.cli import parser, run
from utils.data import Sequences
from utils.datasets import dataset_folder, is_list, is_time
from utils.errors import InputError, shown
from utils.files import MANIFEST, atomic_write, check_whole, staged_directory
from utils.names import load_names
from utils.pickles import load_pickle

BREAKS = re.compile(r"\r\n|[\t\r\n\0]")  # what ends a column or a line
IN_NAMES = re.compile(r'[\t\r\n\0:"]')  # of columns, where a colon comes before the type
QUOTED = re.compile(' *"')
INTERACTIONS = ("user_id:token", "item_id:token", "timestamp:float")
REPLACED, CONVERTED = "texts with tabs, line breaks or half characters", "fields that were no text"


class History(NamedTuple):
    """What a user had, in order."""

    user: Any
    items: list[int]
    times: Sequence[float] | None  # in seconds; None where they are not known


def main() -> None:
    """Read everything, write both files, and say what was changed and how the files are read back."""
    args = parse()
    folder, output = dataset_folder(args.dataset), Path(args.recbole)
    check_whole(folder / MANIFEST)
    count = merging.count_items(folder)
    histories = read_histories(folder, count)
    texts_path = folder / "item_text_dict.pkl"
    texts = merging.load_item_texts(texts_path) if texts_path.is_file() else {}
    users = tokens((history.user for history in histories), "user", folder)
    items = tokens(load_names(folder, count, needed=False).ids, "item", folder)
    fields = ordered_names(texts.values())
    columns = column_names(fields, texts_path)
    name, changed = folder.resolve().name, Counter()
    with staged_directory(output) as staging:
        write_table(staging / f"{name}.inter", INTERACTIONS, interaction_rows(users, items, histories))
        rows = (
            (item, *(cell(texts.get(number, {}).get(field), changed) for field in fields))
            for number, item in enumerate(items)
        )
        write_table(staging / f"{name}.item", ("item_id:token", *(f"{column}:token_seq" for column in columns)), rows)
    print_summary(output / name, histories, items, changed)
    print(f"to read it back: {command_back(folder, output / name, columns)}")


def parse() -> argparse.Namespace:
    """Parse the command line."""
    flags = parser(__doc__)
    flags.add_argument("--dataset", required=True, metavar="DIR", help="data set directory, or its name in data/test")
    flags.add_argument("--recbole", required=True, metavar="DIR", help="where NAME.inter and NAME.item are written")
    return flags.parse_args()


def read_histories(folder: Path, count: int) -> list[History]:
    """The whole history of each user, once: first those of test.pkl, then the others of train.pkl.

    A name that has another history in train.pkl stands for two users: the second is called train_NAME.

    Raises:
        InputError: neither file is there, or one is damaged; an item id is `count` or more; times that do not fit.
    """
    paths = [folder / "test.pkl", folder / "train.pkl"]
    if not any(path.is_file() for path in paths):
        raise InputError(f"{folder} has neither train.pkl nor test.pkl. {merging.REMEDY}")
    test, train = (merging.load_histories(path, count) if path.is_file() else Sequences.of() for path in paths)
    times = load_times(folder / "test_times.pkl", test)
    histories = [History(user, items, times.get(user)) for user, items in zip(test.users, test.lists(), strict=True)]
    others, known = merging.unlike_test(folder, train, test), set(test.users)
    for user, items in zip(others.users, others.lists(), strict=True):
        histories.append(History(f"train_{user}" if user in known else user, items, None))
    return histories


def load_times(path: Path, test: Sequences) -> dict[Any, list[float]]:
    """The times of each user's interactions by test_times.pkl; empty where there is none.

    Raises:
        InputError: a damaged file, or a user without one finite number for each item.
    """
    if not path.is_file():
        return {}
    times = load_pickle(path, dict, merging.REMEDY)
    for user, length in zip(test.users, test.lengths, strict=True):
        listed = times.get(user)
        if not is_list(listed) or len(listed) != length or not all(map(is_time, listed)):
            raise InputError(
                f"{path}, user {shown(user)}: found {shown(listed)}, expected one time for each of the {length} items "
                f"in test.pkl. {merging.REMEDY}"
            )
    return times


def tokens(names: Iterable[Any], what: str, folder: Path) -> list[str]:
    """Names of users or items, `what` they are, as values of a column.

    Raises:
        InputError: a name that a line cannot hold, that reads as a missing value, or that stands for two.
    """
    found = [str(name) for name in names]
    for name in found:
        if BREAKS.search(name) or name != encodable(name) or is_missing(name):
            raise InputError(
                f"{folder}: the {what} {shown(name)} has a tab, a line break or half a character in its name, or reads "
                f"as a missing value, which RecBole's files cannot hold. Rename it in the files that were imported."
            )
    if len(set(found)) < len(found):
        twice = next(name for name, times in Counter(found).items() if times > 1)
        raise InputError(
            f"{folder}: two {what}s are called {shown(twice)}. Rename one in the files that were imported."
        )
    return [unquoted(name) for name in found]


def interaction_rows(users: list[str], items: list[str], histories: list[History]) -> Iterator[tuple[str, str, str]]:
    """Yield the columns of each interaction; times have a decimal point, without which they might be read as dates."""
    for user, history in zip(users, histories, strict=True):
        times = range(len(history.items)) if history.times is None else history.times
        for item, time in zip(history.items, times, strict=True):
            yield user, items[item], repr(float(time))


def encodable(text: str) -> str:
    """The text with a question mark for each half of a surrogate pair, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()


def unquoted(text: str) -> str:
    """A text as the value of a column: RecBole takes a quotation mark that begins it for the start of a quotation."""
    return f" {text}" if QUOTED.match(text) else text


def ordered_names(fields_of_items: Iterable[dict[Any, Any]]) -> list[Any]:
    """The names of all text fields in an order that every item's own order agrees with, where there is one.

    An item's text is encoded in the order of its fields, so that another order would give other embeddings.
    """
    before: dict[Any, set[Any]] = {}
    for fields in fields_of_items:
        for name in fields:
            before.setdefault(name, set())
        for first, second in pairwise(fields):
            before[second].add(first)
    try:
        return list(TopologicalSorter(before).static_order())
    except CycleError:
        return list(before)


def column_names(names: list[Any], path: Path) -> list[str]:
    """The names of text fields as names of columns; prints those that had to be changed.

    Raises:
        InputError: a column without name, or two of one name.
    """
    columns = [encodable(clean(IN_NAMES.sub("_", str(name)))) for name in names]
    for name, column in zip(names, columns, strict=True):
        if not column or [*columns, "item_id"].count(column) > 1:
            raise InputError(
                f"{path}: the text field {shown(name)} would be the column {column!r}, which has no name or is there "
                "already. Rename the field in the file that was imported."
            )
        if column != name:
            print(f"{path}: the text field {shown(name)} becomes the column {column}")
    return columns


def as_text(value: Any) -> str:
    """The value of a text field as one text: lists by their values between blanks, numbers and objects as JSON.

    >>> as_text(["Toys", 3, {"age": 4}])
    'Toys 3 {"age": 4}'
    """
    if value is None or isinstance(value, str):
        return value or ""
    if is_list(value):
        return " ".join(map(as_text, value))
    return json.dumps(value, ensure_ascii=False, default=str)


def cell(value: Any, changed: Counter) -> str:
    """The value of a text field as that of a column; counts in `changed` what could not stay as it is."""
    text = as_text(value)
    plain = BREAKS.sub(" ", encodable(text))
    changed[CONVERTED] += not isinstance(value, str) and value is not None
    changed[REPLACED] += plain != text
    return unquoted(plain)


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write columns between tabs, under a line with their names."""
    with atomic_write(path, "w") as file:
        file.writelines("\t".join(row) + "\n" for row in chain([header], rows))


def print_summary(path: Path, histories: list[History], items: list[str], changed: Counter) -> None:
    """Print what was written, of how many users the times are not known, and how many texts were changed."""
    interactions = sum(len(history.items) for history in histories)
    print(f"{path}.inter, {path.name}.item: {len(histories)} users, {interactions} interactions, {len(items)} items")
    timeless = sum(history.times is None for history in histories)
    if timeless:
        print(f"  the times of {timeless} users are not known: their interactions have 0, 1, 2, … in place of times")
    for what, how in ((REPLACED, "have blanks or question marks there"), (CONVERTED, "were written as text")):
        if changed[what]:
            print(f"  {changed[what]} {what} {how}")


def command_back(folder: Path, path: Path, columns: list[str]) -> str:
    """The command that reads the files of `path`, which has no ending, into a data set equal to that of `folder`."""
    words = ["--interactions", f"{path}.inter", "--items", f"{path}.item", "--item_column", "item_id"]
    words += ["--text_columns", *columns] if columns else []
    embeddings = folder / "item_text_embeddings.npy"
    words += ["--embeddings", str(embeddings)] if embeddings.is_file() else []
    words += ["--min_user_interactions", "0", "--min_item_interactions", "0", "--output", f"data/test/{path.name}_back"]
    return f"python data_processing/import_dataset.py {shlex.join(words)}"


if __name__ == "__main__":
    run(main)
