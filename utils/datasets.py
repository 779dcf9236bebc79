"""The release layout on disk (data/pre_train, data/eval, data/test/NAME) -> sequences and catalogs, checked."""

import sys
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.data import Catalog, Sequences, cumulate
from utils.errors import InputError, shown
from utils.files import MANIFEST, check_whole, content, load_matrix, read_json
from utils.fsq import CODEBOOK_SIZE, CODES_PER_ITEM
from utils.pickles import load_pickle

MAKE_PRE_TRAIN = (
    "Fetch it (python data_processing/data_download.py --release pre_train) or make it (README, Your own data)."
)
MAKE_EVAL = "Fetch it (python data_processing/data_download.py --release eval) or make it (make_eval.py)."
MAKE_TEST = "Fetch it (python data_processing/data_download.py --release test) or make it (import_dataset.py)."

HISTORIES, CODES, EMBEDDINGS = "train.pkl", "token_id_list.pkl", "all_item_text_embeddings.npy"  # of pre_train
MAPS = "item_id_maps.pkl"  # beside them, where data_process_2.py has made them
HELD_OUT = ("eval.pkl", "token_id_list_eval.pkl", "eval_id_map.pkl", "all_item_text_embeddings_eval.npy")  # of eval
DATA_SET = (  # files of a data set directory that know users or items by their numbers
    *("train.pkl", "test.pkl", "cold_train.pkl", "cold_test.pkl", "test_times.pkl"),
    *("item_text_dict.pkl", "item_ids.jsonl"),
)


class Interactions(NamedTuple):
    """Sequences with the catalog they refer to."""

    sequences: Sequences
    catalog: Catalog
    tokenizer: str | None  # fingerprint of the tokenizer that made the codes, where it is known
    encoder: str | None = None  # name of what made the embeddings, where it is known

    @property
    def origin(self) -> "Origin":
        """What the codes and embeddings were made with."""
        return Origin(self.catalog.source, self.catalog.embeddings.shape[1], self.encoder, self.tokenizer)


class TestSet(NamedTuple):
    """A data set directory as predict.py reads it; codes come from the tokenizer at hand."""

    sequences: Sequences
    embeddings: np.ndarray  # (N, E) memory-mapped
    embeddings_path: Path
    popularity: np.ndarray | None  # (N,) int64 counts in train.pkl, where there is one
    last_times: np.ndarray | None  # (U, 2) seconds of the last item but one and the last, where they are known


def load_sequences(path: Path, remedy: str, drop_short: bool = False, shortest: int = 2) -> Sequences:
    """A pickle of dict user -> list of item ids.

    Raises:
        InputError: not such a dict, ids that are no whole numbers, or histories shorter than `shortest` items
            (a history and a target); with `drop_short` those are left out. An empty file, unless `shortest` is 0.
    """
    users = load_pickle(path, dict, remedy)
    for user, items in users.items():
        if not isinstance(items, (list, tuple)) and not (isinstance(items, np.ndarray) and items.ndim == 1):
            raise InputError(
                f"{path}, user {shown(user)}: found {type(items).__name__}, expected a list of item ids. {remedy}"
            )
    lengths = np.fromiter((len(items) for items in users.values()), np.int64, len(users))
    items = whole_numbers(list(chain.from_iterable(users.values())))
    if items is None:
        user, odd = next((user, item) for user, listed in users.items() for item in listed if not is_id(item))
        raise InputError(f"{path}, user {shown(user)}: item id {shown(odd)} is not a whole number of 63 bits. {remedy}")
    keys = np.fromiter(users, dtype=object, count=len(users))  # tuples, too, each one user
    sequences = Sequences(keys, items, cumulate(lengths))

    short = np.flatnonzero(lengths < shortest)
    if len(short) and not drop_short:
        raise InputError(
            f"{path}, user {shown(keys[short[0]])}: {lengths[short[0]]} item(s), expected {shortest} or more "
            f"(a history and a target); {len(short)} user(s) like this. Remove them, or pass --drop_short."
        )
    if len(short):
        sequences = sequences.select(np.flatnonzero(lengths >= shortest))
    if not len(sequences) and shortest:
        raise InputError(f"{path} holds no user with {shortest} or more items. {remedy}")
    return sequences


def is_id(value: Any) -> bool:
    """Whether a value is a whole number that fits int64; True and False are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def is_time(value: Any) -> bool:
    """Whether a value is a finite number that fits a float; True and False are none."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return number and bool(abs(value) <= sys.float_info.max)


def whole_numbers(values: list[Any]) -> np.ndarray | None:
    """(n,) int64 of a flat list, or None where it holds anything else; one pass in C for plain lists of int."""
    if set(map(type, values)) <= {int} or all(map(is_id, values)):
        try:
            return np.array(values, dtype=np.int64)
        except OverflowError:
            return None
    return None


def check_ids(sequences: Sequences, count: int, path: Path, owner: str) -> None:
    """InputError naming the first user whose list has an item id outside [0, count)."""
    wrong = np.flatnonzero((sequences.items < 0) | (sequences.items >= count))
    if len(wrong):
        user = sequences.users[np.searchsorted(sequences.offsets, wrong[0], side="right") - 1]
        raise InputError(
            f"{path}, user {shown(user)}: item id {sequences.items[wrong[0]]} has no row in {owner} "
            f"(expected 0 to {count - 1}); {len(wrong)} such ids. Make both files from the same items."
        )


def codes_array(listed: list[Any], path: Path) -> np.ndarray:
    """List of N lists of four codes -> (N, K) int16.

    Raises:
        InputError: a row that is not four whole numbers in [0, 15360).
    """
    plain = set(map(type, listed)) <= {list, tuple} and set(map(len, listed)) == {CODES_PER_ITEM}
    flat = whole_numbers(list(chain.from_iterable(listed))) if plain else None  # in C: there may be millions of rows
    if flat is None:
        row = next((row for row, codes in enumerate(listed) if not _is_code_row(codes)), None)
        if row is not None or not len(listed):
            found = shown(listed[row]) if row is not None else "no rows"
            raise InputError(
                f"{path}, row {row or 0}: found {found}, expected {CODES_PER_ITEM} whole numbers. "
                "Make it again (make_token_list.py)."
            )
        flat = np.array(listed, dtype=np.int64)
    codes = flat.reshape(-1, CODES_PER_ITEM)
    outside = ((codes < 0) | (codes >= CODEBOOK_SIZE)).any(axis=1)
    if outside.any():
        row = int(np.argmax(outside))
        raise InputError(
            f"{path}, row {row}: codes {codes[row].tolist()}, expected 0 to {CODEBOOK_SIZE - 1}. "
            "Make the codes again (make_token_list.py)."
        )
    return codes.astype(np.int16)


def _is_code_row(codes: Any) -> bool:
    return isinstance(codes, (list, tuple, np.ndarray)) and len(codes) == CODES_PER_ITEM and all(map(is_id, codes))


def codes_fingerprint(path: Path) -> str | None:
    """The tokenizer's fingerprint that make_token_list.py notes beside its codes; None for release files."""
    beside = path.with_suffix(".json")
    return read_json(beside).get("tokenizer") if beside.is_file() else None


def made_by(codes: Path, embeddings: Path) -> tuple[str | None, str | None]:
    """The tokenizer's fingerprint and the encoder's name, of release files None."""
    return codes_fingerprint(codes), noted_encoder(embeddings)


def check_made_from(made: Path, source: Path, name: str, remedy: str) -> None:
    """InputError where the JSON beside a file has, under `name`, the hash of another source than is there now.

    The release's files have no such JSON, and a source may have been deleted: then there is nothing to compare.
    """
    metadata = made.with_suffix(".json")
    if not metadata.is_file() or not source.is_file():
        return
    noted = read_json(metadata).get(name)
    if noted not in (None, content(source)):
        raise InputError(
            f"{made} was made from another {source.name} than {source}. {remedy} If you know that they fit, remove "
            f"{name!r} from {metadata}."
        )


def check_encoded(embeddings: Path) -> None:
    """InputError where a data set's embeddings are not those of the JSON or the texts beside them."""
    check_whole(embeddings.with_suffix(".json"))
    texts = embeddings.with_name("item_text_dict.pkl")
    check_made_from(embeddings, texts, "texts", "Encode them again (data_processing/TextEncoder_batch.py).")


def catalogs(directories: dict[str, Path]) -> dict[str, list[str | None]]:
    """Data set name -> hashes of its texts and of its items' names; None for a file that is not there."""
    files = {name: (path / "item_text_dict.pkl", path / "item_ids.jsonl") for name, path in directories.items()}
    return {name: [content(path) if path.is_file() else None for path in paths] for name, paths in files.items()}


def check_catalogs(folder: Path) -> None:
    """InputError where the merged histories and the merged embeddings are of other data sets, though of equal sizes."""
    notes = [folder / MANIFEST, (folder / EMBEDDINGS).with_suffix(".json")]
    merged = [read_json(note).get("catalogs") for note in notes if note.is_file()]
    if None not in merged and len(merged) == len(notes) and merged[0] != merged[1]:
        raise InputError(
            f"{folder}: {HISTORIES} and {EMBEDDINGS} were merged from other items. Run data_process_2.py, "
            "pre_train_data_process.py and make_token_list.py again."
        )


def noted_encoder(embeddings: Path) -> str | None:
    """The encoder that the JSON beside a matrix names, where there is one.

    Raises:
        InputError: the JSON is damaged, or of another matrix.
    """
    metadata = embeddings.with_suffix(".json")
    check_whole(metadata)
    return read_json(metadata).get("encoder") if metadata.is_file() else None


class Origin(NamedTuple):
    """What item embeddings and codes were made with: those at hand, or those that a checkpoint was trained on."""

    name: str | Path  # the file, for messages
    width: int  # of the embeddings, E
    encoder: str | None  # its name; None where it is not known
    tokenizer: str | None  # its fingerprint; None where it is not known


def check_fit(trained: Origin, found: Origin) -> None:
    """InputError unless a checkpoint can read the embeddings and codes at hand; says at once all that is wrong.

    Of an encoder's name or path only the last part counts.
    """
    problems = []
    if trained.width != found.width:
        problems.append(
            f"{found.name} is {found.width} wide, {trained.name} was trained on embeddings {trained.width} wide. "
            "Encode both with one sentence encoder."
        )
    encoders = [origin.encoder for origin in (trained, found) if isinstance(origin.encoder, str) and origin.encoder]
    if len(encoders) == 2 and Path(encoders[0]).name != Path(encoders[1]).name:
        problems.append(
            f"{trained.name} was trained on embeddings of the encoder {trained.encoder}, {found.name} has those of "
            f"{found.encoder}. Encode the texts with the first; if it is the same under two names, mend "
            '"encoder" in the JSON beside the embeddings.'
        )
    if trained.tokenizer and found.tokenizer and trained.tokenizer != found.tokenizer:
        problems.append(
            f"{trained.name} was trained on codes of tokenizer {trained.tokenizer}, those of {found.name} are of "
            f"{found.tokenizer}. Name the first with --vae_ckpt, to make_eval.py where the codes are of an eval set."
        )
    if problems:
        raise InputError(" ".join(problems))


def load_pre_train(folder: str | Path, drop_short: bool = False) -> Interactions:
    """data/pre_train: train.pkl, token_id_list.pkl, all_item_text_embeddings.npy.

    Raises:
        InputError: see the parts; or codes and embeddings that differ in number, or were not made from each other.
    """
    folder = Path(folder)
    for name in (MANIFEST, EMBEDDINGS, CODES):
        check_whole((folder / name).with_suffix(".json"))
    check_catalogs(folder)
    sequences = load_sequences(folder / HISTORIES, MAKE_PRE_TRAIN, drop_short)
    codes_path, matrix_path = folder / CODES, folder / EMBEDDINGS
    codes = codes_array(load_pickle(codes_path, list, MAKE_PRE_TRAIN), codes_path)
    embeddings = load_matrix(matrix_path, MAKE_PRE_TRAIN)
    if len(codes) != len(embeddings):
        raise InputError(
            f"{codes_path} has {len(codes)} items, {matrix_path} {len(embeddings)} rows; they must be the same items. "
            "Make the codes again from this matrix (make_token_list.py)."
        )
    check_made_from(codes_path, matrix_path, "embeddings", "Make the codes again (make_token_list.py).")
    remedy = "Make the matrix again (pre_train_data_process.py), and then the codes."
    check_made_from(matrix_path, folder / MAPS, "maps", remedy)
    check_ids(sequences, len(codes), folder / HISTORIES, str(codes_path))
    return Interactions(
        sequences, Catalog(codes, embeddings, source=str(matrix_path)), *made_by(codes_path, matrix_path)
    )


def load_eval(folder: str | Path, drop_short: bool = False) -> Interactions:
    """data/eval, where items have codes by id (list or dict) and rows by eval_id_map.pkl.

    Ids are replaced by places in the sorted list of those that occur, so that they may have gaps.

    Raises:
        InputError: see the parts; or an item id without codes or without a row.
    """
    histories_path, codes_path, map_path, matrix_path = (Path(folder) / name for name in HELD_OUT)
    for path in (Path(folder) / MANIFEST, codes_path, matrix_path):
        check_whole(path.with_suffix(".json"))
    check_made_from(codes_path, matrix_path, "embeddings", "Make both again (make_eval.py).")
    sequences = load_sequences(histories_path, MAKE_EVAL, drop_short)
    by_id = load_pickle(codes_path, (list, dict), MAKE_EVAL)
    id_map = load_pickle(map_path, dict, MAKE_EVAL)
    embeddings = load_matrix(matrix_path, MAKE_EVAL)

    ids, places = np.unique(sequences.items, return_inverse=True)
    known = by_id if isinstance(by_id, dict) else range(len(by_id))
    for item in ids.tolist():
        if item not in known:
            raise InputError(f"{codes_path}: item {item} of eval.pkl has no codes there. {MAKE_EVAL}")
        row = id_map.get(item)
        if not is_id(row) or not 0 <= row < len(embeddings):
            raise InputError(
                f"{map_path}: item {item} of eval.pkl maps to row {shown(row)}, expected 0 to "
                f"{len(embeddings) - 1} of {matrix_path}. {MAKE_EVAL}"
            )
    codes = codes_array([by_id[item] for item in ids.tolist()], codes_path)
    rows = np.fromiter((id_map[item] for item in ids.tolist()), np.int64, len(ids))
    sequences = Sequences(sequences.users, places, sequences.offsets)
    return Interactions(
        sequences, Catalog(codes, embeddings, rows, str(matrix_path)), *made_by(codes_path, matrix_path)
    )


def dataset_folder(name: str) -> Path:
    """data/test/NAME, data/NAME (the published program's test/steam), or an existing directory given as a path.

    Raises:
        InputError: none exists; names the data sets that do.
    """
    for folder in (Path("data/test") / name, Path("data") / name, Path(name)):
        if folder.is_dir():
            return folder
    there = sorted(path.name for path in Path("data/test").glob("*") if path.is_dir())
    raise InputError(
        f"--dataset {name}: no directory data/test/{name}, data/{name} or {name} exists "
        f"({'there are ' + ', '.join(there) if there else 'data/test is empty'}). {MAKE_TEST}"
    )


def load_test(folder: Path, cold: bool, drop_short: bool = False) -> TestSet:
    """A data set directory: test.pkl or cold_test.pkl, item_text_embeddings.npy, and train.pkl where there is one.

    Raises:
        InputError: see the parts; an item id without a row; an empty catalog.
    """
    path, embeddings_path = folder / ("cold_test.pkl" if cold else "test.pkl"), folder / "item_text_embeddings.npy"
    check_whole(folder / MANIFEST)
    check_encoded(embeddings_path)
    sequences = load_sequences(path, MAKE_TEST, drop_short)
    embeddings = load_matrix(embeddings_path, MAKE_TEST)
    check_ids(sequences, len(embeddings), path, str(embeddings_path))

    popularity, train_path = None, folder / "train.pkl"
    train = load_sequences(train_path, MAKE_TEST, shortest=0) if train_path.is_file() else None
    if train:
        check_ids(train, len(embeddings), train_path, str(embeddings_path))
        popularity = np.bincount(train.items, minlength=len(embeddings))
    times = None if cold else load_last_times(folder / "test_times.pkl", sequences, path)
    return TestSet(sequences, embeddings, embeddings_path, popularity, times)


def load_last_times(path: Path, sequences: Sequences, owner: Path) -> np.ndarray | None:
    """(U, 2) float64 times of each user's last two items from test_times.pkl; None where there is no such file.

    Raises:
        InputError: users or lengths differ from those of the sequences, or a time is no number.
    """
    if not path.is_file():
        return None
    times = load_pickle(path, dict, MAKE_TEST)
    try:
        listed = [times[user] for user in sequences.users]
        if [len(one) for one in listed] != sequences.lengths.tolist():
            raise ValueError("lengths differ")
        last = [list(one[-2:]) for one in listed]
        if not all(map(is_time, chain.from_iterable(last))):
            raise ValueError("times that are no finite numbers")
        return np.array(last, dtype=np.float64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{path} does not match {owner} ({type(error).__name__}: {error}). Make both again (make_dataset.py)."
        ) from error
