"""A bundle: one folder with all that recommends from a shop's catalog, checked when it is opened.

    my_bundle/bundle.json       names the folder with all the rest, says what it was made from, and hashes of its files
    my_bundle/<version>/        model/ and tokenizer/ (safetensors), log/ (statistics), blend.json, whitening.npz,
                                items.sqlite, and by the items' numbers texts.bin, embeddings.bin, codes.bin

A bundle that is made anew gets a folder of its own, and one rename of bundle.json puts it in place of the earlier one.
Items are added, changed and removed in the folder itself (serving/store.py).
Letters of the shapes as in utils/data.py: X items, E embedding width.
"""

import contextlib
import hashlib
import json
import threading
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from scipy.sparse import csr_array

from ae_trainer import AutoEncoder, load_tokenizer
from data_processing.parts.encoding import Encoding, item_text, load_encoder
from data_processing.parts.missing import has_text, is_missing
from model import RecGPT, load_model
from serving.half import halve
from serving.log import load_log
from serving.store import Item, ItemId, ItemStore, check_fields, check_id, whole
from utils.blend import NETWORK, Blend
from utils.blend_files import load_blends
from utils.checkpoint import CODES
from utils.data import check_finite
from utils.errors import InputError, reason, shown
from utils.files import fingerprint, read_json, require_file
from utils.names import TITLES, title
from utils.scores import LogStatistics
from utils.whitening import Whitening

VERSION = 2
HEADER, PREFIX = "bundle.json", "version-"  # the second begins the name of the folder that the first names
REMEDY = "Make it with python -m serving.bundle."
NEEDED = {
    "folder": str,
    "encoder": (str, type(None)),
    "fields": list,
    "others": list,
    "arrays": dict,
    "files": dict,
    "rank_by": str,
}
ARRAYS = {"texts": "float32", "embeddings": "float32", "codes": "int16"}  # that a bundle may have, and their types
WIDEST = 1 << 16  # numbers in a row


class Bundle:
    """All that recommends, opened."""

    def __init__(self, header_path: Path, header: dict[str, Any], device: str, half: bool = False):
        """What bundle.json says, by `header`; InputError unless all files are there and whole."""
        if half and device != "cpu":
            raise InputError(f"weights of 16 bits (--half) are for the CPU, and the device is {device}.")
        self.path, self.header, self.folder = header_path, header, header_path.parent / header["folder"]
        for name, known in header["files"].items():
            if fingerprint(require_file(self.folder / name, REMEDY)) != known:
                raise InputError(f"{self.folder / name} is not the file that {header_path} was written with. {REMEDY}")
        self.device, self.half = device, half
        self.encoder_name: str | None = header["encoder"]
        self.fields: list[str] = header["fields"]  # whose texts are encoded
        self.known: list[str] = [*header["fields"], *header["others"]]  # all that items may have
        self.store = ItemStore(self.folder, header["arrays"])
        self.width = self.store.widths["texts"][0]  # E
        self.whitening = load_whitening(self.folder / "whitening.npz", self.width)
        self.model: RecGPT | None = None
        self.tokenizer: AutoEncoder | None = None
        self.log: tuple[LogStatistics, csr_array | None] | None = None
        self.blend: Blend | None = None
        self.preparing, prepared = self.whitening, self.folder / "prepared.npz"
        if (self.folder / "model").is_dir():
            if prepared.is_file():  # of few items, whose texts are not whitened
                self.preparing = load_whitening(prepared, self.width)
            self.model, _ = load_model(self.folder / "model", device, mapped=True)
            self.tokenizer = load_tokenizer(self.folder / "tokenizer")
            needed = {"codes"} if self.tokenizer.whitens and not prepared.is_file() else {"codes", "embeddings"}
            fits = needed <= self.store.widths.keys() and self.model.config.embedding_width == self.width
            if not fits or self.tokenizer.codebook != self.model.config.codebook:
                raise InputError(f"{header_path}: 'arrays' does not fit the model. {REMEDY}")
            if half:
                halve(self.model)
        if (self.folder / "log").is_dir():
            self.log = load_log(self.folder / "log")
        if (self.folder / "blend.json").is_file():
            ((_, self.blend),) = load_blends(self.folder / "blend.json").items()
        self._encoder, self._encoding, self._changing = None, threading.RLock(), threading.Lock()

    @classmethod
    def open(cls, path: Path, device: str = "cpu", half: bool = False) -> "Bundle":
        """Open the bundle in a folder; with `half` its model computes with weights of 16 bits (serving/half.py).

        InputError for none, or one that is damaged or of another version.
        """
        header_path = path / HEADER
        while True:
            header = read_header(header_path)
            try:
                return cls(header_path, header, device, half)
            except InputError:
                if read_json(header_path) == header:  # otherwise another was made meanwhile, in place of this one
                    raise

    def is_current(self) -> bool:
        """Whether no other bundle has been made in its place; true, too, while the file cannot be read."""
        with contextlib.suppress(InputError):
            return read_json(self.path).get("folder") == self.header["folder"]
        return True

    @property
    def title_field(self) -> str:
        """The text field that holds a title, or else the first one."""
        return next((name for name in TITLES if name in self.fields), self.fields[0])

    def own_form(self, item: str) -> ItemId:
        """An id that was read from text as the shop has it: a number, where all ids were whole numbers."""
        plain = self.header.get("numbers") is True and item.isascii() and item.isdecimal() and len(item) < 19
        return int(item) if plain and str(int(item)) == item else item

    @property
    def reads_model(self) -> bool:
        """Whether scores need the model."""
        return self.model is not None and (self.blend is None or bool(self.blend.factor(NETWORK)))

    @property
    def reads_codes(self) -> bool:
        """Whether a blend reads the codes of items."""
        return self.reads_model and self.blend is not None and self.model.config.predicts == CODES

    # Texts and embeddings

    def ordered(self, fields: Any) -> dict[str, Any]:
        """The text fields of an item in the order of the catalog's, without empty ones; ValueError for others."""
        check_fields(fields)
        unknown = [name for name in fields if name not in self.known]
        if unknown:
            raise ValueError(f"items have no field {shown(unknown[0])}; they have {', '.join(self.known)}")
        return {name: fields[name] for name in self.known if name in fields and not is_missing(fields[name])}

    def encode(self, texts: list[dict[str, Any]]) -> np.ndarray:
        """Raw embeddings of X items by their text fields, (X, E) float32; zeros where there is no text.

        Raises:
            InputError: the encoder is not known, cannot be loaded, or makes embeddings of another width.
            ValueError: a field that the catalog does not have.
        """
        rows = np.zeros((len(texts), self.width), dtype=np.float32)
        for fields in texts:
            self.ordered(fields)  # which checks them; a known item's are encoded in the order that they have
        texts = [{name: value for name, value in fields.items() if name in self.fields} for fields in texts]
        written = [whole(item_text(fields)) if has_text(list(fields.values())) else "" for fields in texts]
        known = [row for row, text in enumerate(written) if text]
        if not known:
            return rows
        with self._encoding:
            found = self.encoder().encode([written[row] for row in known])
        if found.shape[1] != self.width:
            raise InputError(f"the encoder {self.encoder_name} is {found.shape[1]} wide, the bundle {self.width}.")
        rows[known] = found
        return rows

    def encoder(self) -> Encoding:
        """The sentence encoder, loaded when it is first needed; InputError if it is not named, or cannot be."""
        with self._encoding:
            if self.encoder_name is None:
                raise InputError(
                    f"{self.path} does not name its sentence encoder, which a new text needs. "
                    "Make it again with --encoder."
                )
            if self._encoder is None:
                self._encoder = Encoding(self.encoder_name, load_encoder(self.encoder_name, "cpu"))
            return self._encoder

    def prepared(self, embeddings: np.ndarray) -> np.ndarray:
        """Raw embeddings (X, E) as model and tokenizer read them: whitened, if they were trained so."""
        return self.preparing(embeddings) if self.tokenizer.whitens else embeddings

    # Changes

    def add(self, items: Iterable[tuple[ItemId, dict[str, Any]]], embeddings: np.ndarray | None = None) -> int:
        """Add items, each with its id and text fields; returns how many.

        Args:
            items: nothing is changed unless all can be added.
            embeddings: (X, E) float, as the sentence encoder makes them; None: it makes them.

        Raises:
            ValueError: an id that an item has already, or that is there twice; a field that the catalog does not have.
            InputError: the encoder cannot be loaded, another process is changing the bundle, or the disk is full.
        """
        return self._put(items, embeddings, new=True)

    def update(self, items: Iterable[tuple[ItemId, dict[str, Any]]], embeddings: np.ndarray | None = None) -> int:
        """Change text fields of items, as `add`; fields that are not named stay, and so does what the log says of them.

        A field that is empty or None is taken away. ValueError for an id that no item has.
        """
        return self._put(items, embeddings, new=False)

    def remove(self, ids: Iterable[ItemId]) -> int:
        """Remove items, all or none; returns how many. They may stand in no history any more.

        Raises:
            ValueError: an id that no item has, or that is there twice.
            InputError: another process is changing the bundle, or the disk is full.
        """
        ids = checked_ids(ids)
        with self._changing, self.store.writing():
            numbers = [self.store.number(item) for item in ids]
            missing = [item for item, number in zip(ids, numbers, strict=True) if number is None]
            if missing:
                raise ValueError(f"no item has the id {shown(missing[0])}; nothing was removed")
            if len(set(numbers)) < len(numbers):
                raise ValueError("an item is named twice; nothing was removed")
            self.store.remove(numbers)
        return len(ids)

    def _put(self, items: Iterable[tuple[ItemId, dict[str, Any]]], embeddings: np.ndarray | None, new: bool) -> int:
        if not isinstance(items, Iterable):
            raise ValueError(f"items are a list of pairs of an id and text fields, found {shown(items)}")
        items = list(items)
        odd = [item for item in items if not isinstance(item, (tuple, list)) or len(item) != 2]
        if odd:
            raise ValueError(f"items are pairs of an id and text fields, found {shown(odd[0])}")
        ids, texts = checked_ids([item for item, _ in items]), [self.ordered(fields) for _, fields in items]
        if not ids:
            return 0
        earlier, given = self._earlier(ids, new), embeddings  # before the long work
        before = [] if new else self.store.items(earlier)
        if not new:
            ids = [item.id for item in before]
            emptied = [[name for name, value in fields.items() if is_missing(value)] for _, fields in items]
            texts = [
                {name: value for name, value in {**item.fields, **text}.items() if name not in empty}
                for item, text, empty in zip(before, texts, emptied, strict=True)
            ]
            same = [
                all(item.fields.get(name) == text.get(name) for name in self.fields)
                for item, text in zip(before, texts, strict=True)
            ]
            if given is None and all(same):
                return self._amend(items, earlier, before, texts)
        embeddings, arrays = self._rows_of(texts, given)
        named = [Item(item, item_title(text, self.fields), text) for item, text in zip(ids, texts, strict=True)]
        with self._changing, self.store.writing():
            earlier, logged = self._earlier(ids, new), None
            if not new:
                moved = self.store.state().moved
                logged = [self._logged(moved.get(number, number)) for number in earlier]
            current = new or self.store.items(earlier) == before
            if current:
                self.store.append(named, arrays, ~np.any(embeddings, axis=1), [] if new else earlier, logged)
        return len(ids) if current else self._put(items, given, new)  # another has changed one of them meanwhile

    def _rows_of(
        self, texts: list[dict[str, Any]], embeddings: np.ndarray | None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Embeddings (X, E) float32 of texts, encoded unless they are given, and the rows of the store's arrays."""
        if embeddings is None:
            embeddings = self.encode(texts)
        elif np.shape(embeddings) != (len(texts), self.width):
            raise ValueError(f"embeddings must be {(len(texts), self.width)}, found {np.shape(embeddings)}")
        if np.asarray(embeddings).dtype.kind not in "fiu":
            raise ValueError(f"embeddings must be real numbers, found {np.asarray(embeddings).dtype}")
        with np.errstate(over="ignore"):
            embeddings = np.asarray(embeddings, dtype=np.float32)
        check_finite(embeddings, 0, "the embeddings")
        arrays = {"texts": self.whitening(embeddings)}
        if self.tokenizer is not None:
            arrays["embeddings"] = np.ascontiguousarray(self.prepared(embeddings))
            arrays["codes"] = self.tokenizer.tokenize(arrays["embeddings"])
        return embeddings, arrays

    def _amend(self, items: list, numbers: list[int], before: list[Item], fields: list[dict[str, Any]]) -> int:
        """Change fields that are not encoded; an item keeps its number."""
        with self._changing, self.store.writing():
            current = self._earlier([item.id for item in before], new=False) == numbers
            current = current and self.store.items(numbers) == before
            if current:
                ids = [item.id for item in before]
                titles = [item_title(one, self.fields) for one in fields]
                self.store.amend(numbers, list(map(Item, ids, titles, fields)))
        return len(numbers) if current else self._put(items, None, new=False)

    def _earlier(self, ids: list[ItemId], new: bool) -> list[int | None]:
        """The numbers of items that have some ids; ValueError if one has where it should be new, or none has."""
        numbers = [self.store.number(item) for item in ids]
        for item, number in zip(ids, numbers, strict=True):
            if new and number is not None:
                raise ValueError(f"an item has the id {shown(item)} already: update it, or remove it first")
            if not new and number is None:
                raise ValueError(f"no item has the id {shown(item)}; add it")
        if len(set(map(str, ids))) < len(ids) or (not new and len(set(numbers)) < len(numbers)):
            raise ValueError("an item is there twice")
        return numbers

    def _logged(self, number: int) -> int | None:
        """A number that the log knows; None for another."""
        return number if self.log is not None and number < len(self.log[0].share) else None


def item_title(fields: dict[str, Any], texts: list[str]) -> str:
    """The title of an item by its fields, of which `texts` are encoded: one that is called so, or else its text."""
    named = {name: fields[name] for name in TITLES if fields.get(name)}
    return title(named or {name: value for name, value in fields.items() if name in texts})


def read_header(path: Path) -> dict[str, Any]:
    """Read bundle.json; InputError for none, or one that is damaged or of another version."""
    require_file(path, REMEDY)
    try:
        header = read_json(path)
    except InputError as error:  # with another remedy
        raise InputError(f"{path} is not readable JSON. {REMEDY}") from error
    if header.get("version") != VERSION:
        raise InputError(f"{path} is of version {shown(header.get('version'))}, expected {VERSION}. {REMEDY}")
    check_header(path, header)
    if header.get("hash") not in (None, header_hash(header)):
        raise InputError(f"{path} is not as it was written. {REMEDY}")
    return header


def header_hash(header: dict[str, Any]) -> str:
    """A hash of all else that bundle.json says."""
    said = {name: value for name, value in header.items() if name != "hash"}
    return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()


def check_header(path: Path, header: dict[str, Any]) -> None:
    """InputError unless bundle.json has all that is read of it, and names no file elsewhere."""

    def plain(name: str) -> bool:
        return bool(name) and "\0" not in name and not Path(name).is_absolute() and ".." not in Path(name).parts

    def is_array(name: str, found: Any) -> bool:
        known = isinstance(found, list) and len(found) == 2 and found[1] == ARRAYS.get(name)
        return known and type(found[0]) is int and 0 < found[0] <= WIDEST

    odd = [name for name, kind in NEEDED.items() if not isinstance(header.get(name), kind)]
    checks = {
        "folder": lambda name: plain(name) and name.startswith(PREFIX) and len(Path(name).parts) == 1,
        "fields": lambda names: names and all(type(name) is str for name in names),
        "others": lambda names: all(type(name) is str and name not in header["fields"] for name in names),
        "arrays": lambda arrays: "texts" in arrays and all(is_array(*one) for one in arrays.items()),
        "files": lambda files: all(map(plain, files)),
    }
    odd = odd or [name for name, fits in checks.items() if not fits(header[name])]
    if odd:
        raise InputError(f"{path}: {odd[0]!r} is {shown(header.get(odd[0]))}. {REMEDY}")


def checked_ids(ids: Iterable[Any]) -> list[ItemId]:
    """Ids of items; ValueError for one that is none, and where a text stands for the list."""
    if isinstance(ids, (str, bytes, dict)) or not isinstance(ids, Iterable):
        raise ValueError(f"expected a list of ids, found {shown(ids)}")
    return [check_id(item) for item in ids]


def save_whitening(path: Path, whitening: Whitening) -> None:
    """Write a whitening."""
    np.savez(path, **whitening._asdict())


def load_whitening(path: Path, width: int) -> Whitening:
    """Read a whitening of embeddings so wide; InputError for a damaged file."""
    try:
        with np.load(require_file(path, REMEDY), allow_pickle=False) as saved:
            whitening = Whitening(*(saved[name] for name in Whitening._fields))
            if [(part.shape, part.dtype) for part in whitening] != [((width,), float), ((width, width), float)]:
                raise ValueError("its parts have other shapes")
            return whitening
    except (OSError, KeyError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({reason(error)}). {REMEDY}") from error
