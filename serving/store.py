"""The items of a bundle on disk: names and texts in a SQLite file, codes and embeddings in flat arrays beside it.

Every item has a number: 0, 1, 2, … in the order of arrival, never given twice. Rows of the arrays belong to numbers,
and are only ever appended; an item that is removed keeps its row, and one whose text changes gets a new number. The
commit of a SQLite transaction makes a change known, with all of its rows or none: who reads has the catalog as it was
before, or as it is after. What a killed process has appended without a commit is written over by the next one.

SQLite, of Python's own library, since many processes look up single items while one writes.
Letters of the shapes as in utils/data.py: N numbers, of items that are there or were.
"""

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_processing.parts.columns import clean
from utils.errors import DiskError, InputError, reason, shown
from utils.files import lock

TABLES = """
    CREATE TABLE items (
        number INTEGER PRIMARY KEY, id NOT NULL, title TEXT NOT NULL, folded TEXT NOT NULL, fields TEXT NOT NULL,
        state INTEGER NOT NULL, logged INTEGER
    );
    CREATE UNIQUE INDEX by_id ON items (CAST(id AS TEXT)) WHERE state < 2;
    CREATE INDEX by_any_id ON items (CAST(id AS TEXT), number);
    CREATE INDEX by_title ON items (folded);
    CREATE INDEX by_state ON items (state) WHERE state > 0;
    CREATE INDEX by_logged ON items (number) WHERE logged IS NOT NULL;
    CREATE TABLE pieces (array TEXT NOT NULL, start INTEGER NOT NULL, size INTEGER NOT NULL, hash TEXT NOT NULL);
    CREATE TABLE catalog (generation INTEGER NOT NULL, numbers INTEGER NOT NULL);
    INSERT INTO catalog VALUES (0, 0);
"""
THERE, TEXTLESS, GONE = range(3)  # states: may be recommended; has no text, and may not; was removed
FILE = "items.sqlite"
ROWS = 1 << 14  # that are written at once
WAIT = 30.0  # seconds for another process that is writing
SEARCHED = 500_000  # titles that a search looks into, which bounds its time
LAST = "\U0010ffff"  # stands behind every other character
LEVELS = 8  # of lists in lists that a field may have
REMEDY = "Make the bundle again (python -m serving.bundle)."

ItemId = int | str


class Item(NamedTuple):
    """An item as the shop knows it."""

    id: ItemId
    title: str
    fields: dict[str, Any]  # text fields by name


class Change(NamedTuple):
    """What is known of all numbers at one time."""

    generation: int  # goes up with every change
    numbers: int  # given so far, N
    barred: np.ndarray  # (n,) int64, ascending: numbers that may not be recommended
    gone: frozenset[int]  # numbers of items that were removed, or have another number now
    moved: dict[int, int]  # number -> number in the log, of items whose text has changed

    @property
    def count(self) -> int:
        """How many items may be recommended."""
        return self.numbers - len(self.barred)

    def mask(self) -> np.ndarray:
        """(N,) bool, True for numbers that may not be recommended; made anew, since millions are not worth keeping."""
        barred = np.zeros(self.numbers, dtype=bool)
        barred[self.barred] = True
        return barred


def folded(title: str) -> str:
    """A title as it is looked up: without regard to case and outer blanks."""
    return " ".join(title.casefold().split())


def whole(title: str) -> str:
    """A title without halves of surrogate pairs, which no file takes."""
    return title.encode(errors="replace").decode()


class ItemStore:
    """The items of one bundle; safe to use from several threads."""

    def __init__(self, folder: Path, widths: dict[str, tuple[int, str]]):
        """Of a folder, and the arrays in it: name -> width and dtype."""
        self.folder, self.widths = (
            folder,
            {name: (int(width), np.dtype(kind)) for name, (width, kind) in widths.items()},
        )
        self._threads = threading.local()
        if not (folder / FILE).is_file():
            raise InputError(f"{folder / FILE} does not exist. {REMEDY}")

    @classmethod
    def create(cls, folder: Path, widths: dict[str, tuple[int, str]]) -> "ItemStore":
        """A store without items in a folder that exists."""
        with contextlib.closing(sqlite3.connect(folder / FILE)) as connection:
            connection.executescript(TABLES)
        for name in widths:
            (folder / f"{name}.bin").touch()
        return cls(folder, widths)

    # Reading

    def connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        if not hasattr(self._threads, "connection"):
            self._threads.connection = sqlite3.connect(self.folder / FILE, timeout=WAIT, isolation_level=None)
        return self._threads.connection

    def generation(self) -> int:
        """Which generation the catalog is in now: the same number, the same catalog."""
        return self._rows("SELECT generation FROM catalog")[0][0]

    def state(self) -> Change:
        """All numbers as they are now."""
        with self._transaction("BEGIN"):
            catalog = self._rows("SELECT generation, numbers FROM catalog")
            # By the index, or else SQLite reads all items, because they come in the wanted order.
            rows = self._rows("SELECT number, state FROM items INDEXED BY by_state WHERE state > 0")
            moved = "SELECT number, logged FROM items WHERE logged IS NOT NULL AND logged <> number AND state < 2"
            moved, last = self._rows(moved), self._rows("SELECT max(number) FROM items")[0][0]
        whole_numbers = all(type(value) is int and value >= 0 for row in [*catalog, *rows, *moved] for value in row)
        if len(catalog) != 1 or not whole_numbers or (-1 if last is None else last) != catalog[0][1] - 1:
            raise InputError(f"{self.folder / FILE} is damaged: its numbers do not fit each other. {REMEDY}")
        barred = np.array(sorted(number for number, _ in rows), dtype=np.int64)
        gone = frozenset(number for number, state in rows if state == GONE)
        return Change(*catalog[0], barred, gone, dict(moved))

    def array(self, name: str, numbers: int) -> np.ndarray:
        """The first rows of an array, (numbers, width), mapped from its file without a copy; writing changes no file.

        InputError if the file is shorter.
        """
        width, kind = self.widths[name]
        path, size = self.folder / f"{name}.bin", numbers * width * kind.itemsize
        if not path.is_file() or path.stat().st_size < size:
            raise InputError(f"{path} has fewer than {numbers} rows. {REMEDY}")
        if not size:
            return np.empty((0, width), dtype=kind)
        return np.memmap(path, dtype=kind, mode="c", shape=(numbers, width))

    def number(self, item: ItemId, at: Change | None = None) -> int | None:
        """The number of the item with a shop's id, which may be written as text or as a number; None for none.

        With `at` it is the number that the item had at that time.
        """
        name = str(item)
        if whole(name) != name:
            return None
        if at is None:
            rows = self._rows("SELECT number FROM items WHERE CAST(id AS TEXT) = ? AND state < 2", name)
            return rows[0][0] if rows else None
        query = "SELECT max(number) FROM items WHERE CAST(id AS TEXT) = ? AND number < ?"
        number = self._rows(query, name, at.numbers)[0][0]
        return None if number in at.gone else number

    def titled(self, title: str, at_most: int = 2, at: Change | None = None) -> list[int]:
        """The lowest numbers of items with a title, without regard to case; with `at` those of that time."""
        name = folded(whole(title))
        if not name:
            return []
        if at is None:
            query = "SELECT number FROM items WHERE folded = ? AND state < 2 ORDER BY number LIMIT ?"
            return [number for (number,) in self._rows(query, name, at_most)]
        rows = self._rows("SELECT number FROM items WHERE folded = ? AND number < ? ORDER BY number", name, at.numbers)
        return [number for (number,) in rows if number not in at.gone][:at_most]

    def search(self, words: str, limit: int) -> list[int]:
        """Numbers of at most `limit` items by their titles: first those that begin with some words, by an index.

        Then those that hold each of the words somewhere, among the first 500,000 titles in the order of the alphabet.
        """
        words = folded(whole(words))
        if not words:
            return []
        begin = "SELECT number FROM items WHERE folded >= ? AND folded < ? AND state < 2 ORDER BY folded LIMIT ?"
        found = [number for (number,) in self._rows(begin, words, words + LAST, limit)]
        if len(found) < limit:
            titles = f"SELECT number, folded FROM items WHERE state < 2 ORDER BY folded LIMIT {SEARCHED}"
            holds = " AND ".join("instr(folded, ?)" for _ in words.split())
            held = f"SELECT number FROM ({titles}) WHERE {holds} LIMIT ?"
            found += [number for (number,) in self._rows(held, *words.split(), limit + len(found))]
        return list(dict.fromkeys(found))[:limit]

    def beginning_like(self, word: str, at_most: int = 1000) -> list[str]:
        """Some ids and titles that have the first letters of a word, in any case."""
        found = []
        for column, start in (("CAST(id AS TEXT)", word), ("CAST(id AS TEXT)", word.upper()), ("folded", folded(word))):
            start = whole(start[: max(1, len(start) // 2)])
            name = "title" if column == "folded" else column
            query = f"SELECT {name} FROM items WHERE {column} >= ? AND {column} < ? AND state < 2 LIMIT ?"
            found += [name for (name,) in self._rows(query, start, start + LAST, at_most)]
        return found

    def items(self, numbers: Sequence[int]) -> list[Item]:
        """The items of some numbers, also of those that were removed; InputError for damaged ones."""
        query = "SELECT id, title, fields FROM items WHERE number = ?"
        return [self._item(number, *self._rows(query, int(number))) for number in numbers]

    def _item(self, number: int, *rows: tuple[Any, ...]) -> Item:
        """The item that a single row says; InputError for another number of rows, or a damaged one."""
        try:
            ((name, title, fields),) = rows
            item = Item(name, title, json.loads(fields))
        except (TypeError, ValueError, RecursionError):
            item = Item(None, None, None)
        if tuple(map(type, item)) not in ((str, str, dict), (int, str, dict)):
            raise InputError(f"{self.folder / FILE}: item {number} is damaged. {REMEDY}")
        return item

    def all(self, at: Change) -> Iterator[tuple[int, Item]]:
        """Yield the numbers and items that were there at one time, with their fields as they are now."""
        query = "SELECT number, id, title, fields FROM items WHERE number >= ? AND number < ?"
        for start in range(0, at.numbers, ROWS):
            end = min(start + ROWS, at.numbers)
            rows = self._rows(query, start, end)
            if len(rows) != end - start:
                raise InputError(f"{self.folder / FILE} is damaged: it lacks items. {REMEDY}")
            for number, *row in rows:
                if number not in at.gone:
                    yield number, self._item(number, row)

    def check(self) -> int:
        """Read all there is; returns the number of items. InputError for the first thing that is damaged."""
        damage = [row[0] for row in self._rows("PRAGMA quick_check")]
        if damage != ["ok"]:
            raise InputError(f"{self.folder / FILE} is damaged ({shown(damage[0])}). {REMEDY}")
        for name, start, size, known in self._rows("SELECT array, start, size, hash FROM pieces ORDER BY start"):
            path, digest = self.folder / f"{name}.bin", hashlib.blake2b(digest_size=16)
            if name not in self.widths or not path.is_file():
                raise InputError(f"{path} does not exist. {REMEDY}")
            with path.open("rb") as file:
                file.seek(start)
                while size > 0 and (part := file.read(min(size, 1 << 24))):
                    digest.update(part)
                    size -= len(part)
            if digest.hexdigest() != known:
                raise InputError(f"{path} is not as it was written, from byte {start} on. {REMEDY}")
        numbers = [number for (number,) in self._rows("SELECT number FROM items WHERE state < 2")]
        self.items(numbers)
        return len(numbers)

    # Writing

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other writers away in the block; InputError if one is at work."""
        if not self.folder.is_dir():
            raise InputError(f"{self.folder} is gone: the bundle was made anew meanwhile. Try again.")
        with (self.folder / ".lock").open("w") as file:
            lock(file.fileno(), f"{self.folder}: another process is changing this bundle. Wait for it, and try again.")
            yield

    def append(
        self,
        items: Iterable[Item],
        arrays: dict[str, np.ndarray],
        textless: np.ndarray,
        replaced: Sequence[int] = (),
        logged: Sequence[int | None] | None = None,
    ) -> np.ndarray:
        """Give n items the next numbers, (n,) int64; to be called while `writing`.

        Args:
            items: with ids that no other item has, but for those replaced.
            arrays: name -> (n, width).
            textless: (n,) bool.
            replaced: numbers of items that are no more.
            logged: numbers of the items in the log, None for one that it does not have.

        Raises:
            InputError: an id is there twice.
            DiskError: no space.
        """
        count = len(textless)
        start = self._rows("SELECT numbers FROM catalog")[0][0]
        pieces = []
        for name, (width, kind) in self.widths.items():
            rows = np.ascontiguousarray(arrays[name], dtype=kind)
            if rows.shape != (count, width):
                raise ValueError(f"{name} must be {(count, width)}, found {rows.shape}")
            at = start * width * kind.itemsize
            pieces.append((name, at, rows.nbytes, self._append_rows(self.folder / f"{name}.bin", at, rows)))
        numbers = range(start, start + count)
        rows = (
            (number, item.id, whole(item.title), folded(whole(item.title)), json.dumps(item.fields), state, at)
            for number, item, state, at in zip(
                numbers, items, np.where(textless, TEXTLESS, THERE).tolist(), logged or [None] * count, strict=True
            )
        )
        with self._changing(count):
            self._remove(replaced)
            self.connection().executemany("INSERT INTO pieces VALUES (?, ?, ?, ?)", pieces)
            try:
                self.connection().executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            except sqlite3.IntegrityError as error:
                raise InputError(f"{self.folder}: an item's id is there twice ({reason(error)}).") from error
        return np.arange(start, start + count)

    def amend(self, numbers: Sequence[int], items: Sequence[Item]) -> None:
        """Give items other titles and fields, whose texts are the same; to be called while `writing`."""
        changed = [
            (whole(item.title), folded(whole(item.title)), json.dumps(item.fields), int(number))
            for number, item in zip(numbers, items, strict=True)
        ]
        with self._changing(0):
            update = "UPDATE items SET title = ?, folded = ?, fields = ? WHERE number = ?"
            self.connection().executemany(update, changed)

    def remove(self, numbers: Sequence[int]) -> None:
        """Take items away; to be called while `writing`."""
        with self._changing(0):
            self._remove(numbers)

    def _remove(self, numbers: Sequence[int]) -> None:
        gone = [(int(number),) for number in numbers]
        self.connection().executemany(f"UPDATE items SET state = {GONE} WHERE number = ?", gone)

    @contextlib.contextmanager
    def _changing(self, more: int) -> Iterator[None]:
        """A transaction after which the catalog is in its next generation, with so many `more` numbers."""
        try:
            with self._transaction("BEGIN IMMEDIATE"):
                yield
                update = "UPDATE catalog SET generation = generation + 1, numbers = numbers + ?"
                self.connection().execute(update, (more,))
        except sqlite3.Error as error:
            if not isinstance(error, sqlite3.OperationalError):
                raise InputError(f"{self.folder / FILE} is damaged ({reason(error)}). {REMEDY}") from error
            raise DiskError(
                f"{self.folder / FILE} could not be written ({reason(error)}). Free some space, and try again."
            ) from error

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        connection = self.connection()
        connection.execute(begin)
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _append_rows(self, path: Path, size: int, rows: np.ndarray) -> str:
        """Write rows behind the first `size` bytes of a file, in place of what an interrupted change has left there.

        Returns their hash.
        """
        digest = hashlib.blake2b(digest_size=16)
        try:
            with path.open("r+b") as file:
                file.truncate(size)
                file.seek(size)
                for start in range(0, len(rows), ROWS):
                    part = rows[start : start + ROWS].tobytes()
                    digest.update(part)
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            return digest.hexdigest()
        except OSError as error:
            raise DiskError(
                f"{path} could not be written ({reason(error)}). Free some space, and try again."
            ) from error

    def _rows(self, query: str, *values: Any) -> list[tuple]:
        try:
            return self.connection().execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise InputError(f"{self.folder / FILE} cannot be read ({reason(error)}). {REMEDY}") from error


def check_fields(fields: Any) -> None:
    """ValueError unless an item's fields are a dict of names and values that JSON can hold, a few levels deep."""
    if not isinstance(fields, dict) or not all(type(name) is str for name in fields):
        raise ValueError(f"the text of an item is a dict of fields, found {shown(fields)}")
    for name, value in fields.items():
        odd = f"field {shown(name)} is {shown(value)}, expected a text, a number or a list"
        if is_deep(value):
            raise ValueError(f"{odd} of at most {LEVELS} levels")
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise ValueError(odd) from None


def is_deep(value: Any, levels: int = LEVELS) -> bool:
    """Whether lists and dicts stand in each other more than some levels deep."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return bool(parts) and (levels == 0 or any(is_deep(part, levels - 1) for part in parts))


def check_id(item: Any) -> ItemId:
    """The id of an item; ValueError unless it is a text that is not empty, or a whole number of 64 bits.

    A text loses its outer blanks and gets the Unicode form NFC, as in a table that import_dataset.py reads.
    """
    if isinstance(item, np.integer):
        item = int(item)
    if type(item) is int and -(2**63) <= item < 2**63:
        return item
    if type(item) is str and clean(item) and whole(item) == item:
        return clean(item)
    raise ValueError(f"the id of an item is a text or a whole number, found {shown(item)}")
