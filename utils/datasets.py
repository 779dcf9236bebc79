"""Loading data sets in the release layout (data/pre_train, data/eval, data/test/NAME), and checking them."""

import sys
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.data import Catalog, Sequences, cumulate
from utils.errors import InputError, shown
from utils.files import MANIFEST, check_whole, content, load_matrix, read_json
from utils.fsq import PUBLISHED, Codebook
from utils.pickles import load_pickle
from utils.whitening import WHITENED

FETCH = "Fetch it (python data_processing/data_download.py --release {}) or make it ({})."
MAKE_PRE_TRAIN = FETCH.format("pre_train", "README, Your own data")
MAKE_EVAL, MAKE_TEST = FETCH.format("eval", "make_eval.py"), FETCH.format("test", "import_dataset.py")

# Names of the files: in data/pre_train; beside these, if data_process_2.py has made them; in data/eval.
HISTORIES, CODES, EMBEDDINGS = "train.pkl", "token_id_list.pkl", "all_item_text_embeddings.npy"
MAPS = "item_id_maps.pkl"
HELD_OUT = ("eval.pkl", "token_id_list_eval.pkl", "eval_id_map.pkl", "all_item_text_embeddings_eval.npy")
LAST = "last"  # what dataset.json of data/eval says of "targets" where only the last item of each history is one
SEEN = "targets_of"  # in the dataset.json of make_pre_train.py's OUTPUT/whole: hash of the eval.pkl with its targets
WHOLE = "whole_lists_of"  # there, and in checkpoints: hashes of each train.pkl whose lists they have to the end
DATA_SET = (  # files of a data set directory that belong together, as they have the same users and item ids
    *("train.pkl", "test.pkl", "cold_train.pkl", "cold_test.pkl", "test_times.pkl"),
    *("item_text_dict.pkl", "item_ids.jsonl"),
)


def noted_whole_lists(metadata: dict[str, Any]) -> list[str]:
    """The hashes under `WHOLE` in the JSON of a folder or a checkpoint, which may be of others."""
    noted = metadata.get(WHOLE)
    return [value for value in noted if isinstance(value, str)] if isinstance(noted, list) else []


class Interactions(NamedTuple):
    """Sequences, and the catalog that their item ids refer to."""

    sequences: Sequences
    catalog: Catalog
    tokenizer: str | None  # fingerprint of the tokenizer that made the codes, where it is known
    encoder: str | None = None  # name of the encoder that made the embeddings, where it is known
    last_only: bool = False  # whether the last item of each history is its only target
    ids: np.ndarray | None = None  # (N,) int64, of the items in their file, where the catalog numbers them anew

    @property
    def origin(self) -> "Origin":
        """What the codes and embeddings were made with."""
        width = self.catalog.embeddings.shape[1]
        return Origin(self.catalog.source, width, self.encoder, self.tokenizer, self.catalog.codebook)


class TestSet(NamedTuple):
    """What predict.py reads of a data set directory; it has no codes, which the tokenizer makes."""

    sequences: Sequences
    embeddings: np.ndarray  # (N, E) memory-mapped
    embeddings_path: Path
    log: Sequences | None  # the histories of train.pkl, which end before the targets; None without them
    last_times: np.ndarray | None  # (U, 2) float64 seconds of the last two items, where they are known


def load_sequences(path: Path, remedy: str, drop_short: bool = False, shortest: int = 2) -> Sequences:
    """Load a pickled dict user -> list of item ids.

    Histories of fewer than `shortest` items (a history and a target) are refused, or left out with `drop_short`.

    Raises:
        InputError: not such a dict, ids that are no whole numbers, short histories, or no user unless `shortest` is 0.
    """
    users = load_pickle(path, dict, remedy)
    for user, items in users.items():
        if not is_list(items):
            raise InputError(
                f"{path}, user {shown(user)}: found {type(items).__name__}, expected a list of item ids. {remedy}"
            )
    lengths = np.fromiter((len(items) for items in users.values()), np.int64, len(users))
    items = whole_numbers(list(chain.from_iterable(users.values())))
    if items is None:
        user, odd = next((user, item) for user, listed in users.items() for item in listed if not is_id(item))
        raise InputError(f"{path}, user {shown(user)}: item id {shown(odd)} is not a whole number of 63 bits. {remedy}")
    keys = np.fromiter(users, dtype=object, count=len(users))  # a tuple is one user, too
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


def is_list(value: Any) -> bool:
    """Whether a value is a list, a tuple or a one-dimensional array."""
    return isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim == 1)


def is_id(value: Any) -> bool:
    """Whether a value is a whole number that fits int64; True and False are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def is_time(value: Any) -> bool:
    """Whether a value is a finite number that fits a float; True and False are none."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return number and bool(abs(value) <= sys.float_info.max)


def whole_numbers(values: list[Any]) -> np.ndarray | None:
    """Convert a list of whole numbers to (n,) int64, or return None if it holds anything else; plain ints are fast."""
    if set(map(type, values)) <= {int} or all(map(is_id, values)):
        try:
            return np.array(values, dtype=np.int64)
        except OverflowError:
            return None
    return None


def check_ids(sequences: Sequences, count: int, path: Path, owner: str) -> None:
    """Raise InputError naming the first user whose list has an item id outside [0, count)."""
    wrong = np.flatnonzero((sequences.items < 0) | (sequences.items >= count))
    if len(wrong):
        user = sequences.users[np.searchsorted(sequences.offsets, wrong[0], side="right") - 1]
        raise InputError(
            f"{path}, user {shown(user)}: item id {sequences.items[wrong[0]]} has no row in {owner} "
            f"(expected 0 to {count - 1}); {len(wrong)} such ids. Make both files from the same items."
        )


def codes_array(listed: list[Any], path: Path, codebook: Codebook = PUBLISHED) -> np.ndarray:
    """Convert a list of N lists to codes (N, K) int16; InputError unless each is K codes of the codebook."""
    plain = set(map(type, listed)) <= {list, tuple} and set(map(len, listed)) == {codebook.per_item}
    flat = whole_numbers(list(chain.from_iterable(listed))) if plain else None  # no loop over millions of rows
    if flat is None:
        row = next((row for row, codes in enumerate(listed) if not _is_code_row(codes, codebook)), None)
        if row is not None or not len(listed):
            found = shown(listed[row]) if row is not None else "no rows"
            raise InputError(
                f"{path}, row {row or 0}: found {found}, expected {codebook.per_item} whole numbers. "
                "Make it again (make_token_list.py)."
            )
        flat = np.array(listed, dtype=np.int64)
    codes = flat.reshape(-1, codebook.per_item)
    outside = ((codes < 0) | (codes >= codebook.size)).any(axis=1)
    if outside.any():
        row = int(np.argmax(outside))
        raise InputError(
            f"{path}, row {row}: codes {codes[row].tolist()}, expected 0 to {codebook.size - 1}. "
            "Make the codes again (make_token_list.py)."
        )
    return codes.astype(np.int16)


def _is_code_row(codes: Any, codebook: Codebook) -> bool:
    return isinstance(codes, (list, tuple, np.ndarray)) and len(codes) == codebook.per_item and all(map(is_id, codes))


def noted_codebook(codes: Path) -> Codebook:
    """The codebook that the JSON beside a list of codes names, or that of the release; InputError for an odd one."""
    beside = codes.with_suffix(".json")
    return Codebook.read(read_json(beside, missing_ok=True), beside)


def made_by(codes: Path, embeddings: Path) -> tuple[str | None, str | None]:
    """Fingerprint of the tokenizer and name of the encoder that made the files; None for the release's files."""
    return read_json(codes.with_suffix(".json"), missing_ok=True).get("tokenizer"), noted_encoder(embeddings)


def check_made_from(made: Path, source: Path, name: str, remedy: str) -> None:
    """Raise InputError if a file was made from another source than the one that exists now.

    The JSON beside the file has the hash of its source under `name`. The release's files have no such JSON, and a
    source may have been deleted; then nothing is compared.
    """
    metadata = made.with_suffix(".json")
    noted = read_json(metadata, missing_ok=True).get(name) if source.is_file() else None
    if noted is not None and noted != content(source):
        raise InputError(
            f"{made} was made from another {source.name} than {source}. {remedy} If you know that they fit, remove "
            f"{name!r} from {metadata}."
        )


def check_encoded(embeddings: Path) -> None:
    """Raise InputError if embeddings do not belong to the JSON file or the texts beside them."""
    check_whole(embeddings.with_suffix(".json"))
    texts = embeddings.with_name("item_text_dict.pkl")
    check_made_from(embeddings, texts, "texts", "Encode them again (data_processing/TextEncoder_batch.py).")


def catalogs(directories: dict[str, Path]) -> dict[str, list[str | None]]:
    """Data set name -> hashes of its texts and of its items' names; None for a file that does not exist."""
    files = {name: (path / "item_text_dict.pkl", path / "item_ids.jsonl") for name, path in directories.items()}
    return {name: [content(path) if path.is_file() else None for path in paths] for name, paths in files.items()}


def check_catalogs(folder: Path) -> None:
    """Raise InputError if the merged histories and the merged embeddings were made from different catalogs."""
    notes = (folder / MANIFEST, (folder / EMBEDDINGS).with_suffix(".json"))
    histories, embeddings = (read_json(note, missing_ok=True).get("catalogs") for note in notes)
    if None not in (histories, embeddings) and histories != embeddings:
        raise InputError(
            f"{folder}: {HISTORIES} and {EMBEDDINGS} were merged from other items. Run data_process_2.py, "
            "pre_train_data_process.py and make_token_list.py again."
        )


def noted_encoder(embeddings: Path) -> str | None:
    """Name of the encoder in the JSON beside a matrix, or None; InputError if that is damaged or of another matrix."""
    metadata = embeddings.with_suffix(".json")
    check_whole(metadata)
    encoder = read_json(metadata, missing_ok=True).get("encoder")
    return encoder if isinstance(encoder, str) else None


def is_whitened(embeddings: Path) -> bool:
    """Whether the JSON beside a matrix says that its rows were whitened."""
    noted = (noted_encoder(embeddings) or "").endswith(WHITENED)
    return noted or read_json(embeddings.with_suffix(".json"), missing_ok=True).get("whitened") is True


class Origin(NamedTuple):
    """What item embeddings and codes were made with: those at hand, or those that a checkpoint was trained on."""

    name: str | Path  # the file, for messages
    width: int  # of the embeddings, E
    encoder: str | None  # its name; None where it is not known
    tokenizer: str | None  # its fingerprint; None where it is not known
    codebook: Codebook = PUBLISHED


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
    bare = {Path(encoder.removesuffix(WHITENED)).name for encoder in encoders}
    whitened = ["whitened" if encoder.endswith(WHITENED) else "plain" for encoder in encoders]
    if len(bare) == 1 and len(set(whitened)) == 2:
        problems.append(
            f"{trained.name} was trained on {whitened[0]} embeddings, those of {found.name} are {whitened[1]}, as the "
            "tokenizer prepares them. Use the tokenizer it was trained with."
        )
    elif len(bare) == 2:
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
    if trained.codebook != found.codebook:
        problems.append(
            f"{trained.name} reads {trained.codebook} for each item, and those of {found.name} have {found.codebook}."
        )
    if problems:
        raise InputError(" ".join(problems))


def load_pre_train(folder: str | Path, drop_short: bool = False) -> Interactions:
    """Load data/pre_train: train.pkl, token_id_list.pkl and all_item_text_embeddings.npy.

    Raises:
        InputError: a bad file, or codes and embeddings that differ in number or were not made from each other.
    """
    folder = Path(folder)
    for name in (MANIFEST, EMBEDDINGS, CODES):
        check_whole((folder / name).with_suffix(".json"))
    check_catalogs(folder)
    sequences = load_sequences(folder / HISTORIES, MAKE_PRE_TRAIN, drop_short)
    codes_path, matrix_path = folder / CODES, folder / EMBEDDINGS
    codebook = noted_codebook(codes_path)
    codes = codes_array(load_pickle(codes_path, list, MAKE_PRE_TRAIN), codes_path, codebook)
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
    catalog = Catalog(codes, embeddings, source=str(matrix_path), codebook=codebook)
    return Interactions(sequences, catalog, *made_by(codes_path, matrix_path))


def load_eval(folder: str | Path, drop_short: bool = False) -> Interactions:
    """Load data/eval, where items have codes by id (list or dict) and embedding rows by eval_id_map.pkl.

    Ids may have gaps: the catalog holds the items that occur, and their ids are replaced by their numbers in it. Where
    dataset.json says "targets": "last", only the last item of each history is a target.

    Raises:
        InputError: a bad file, or an item id without codes or without a row.
    """
    histories_path, codes_path, map_path, matrix_path = (Path(folder) / name for name in HELD_OUT)
    for path in (Path(folder) / MANIFEST, codes_path, matrix_path):
        check_whole(path.with_suffix(".json"))
    check_made_from(codes_path, matrix_path, "embeddings", "Make both again (make_eval.py).")
    sequences = load_sequences(histories_path, MAKE_EVAL, drop_short)
    by_id = load_pickle(codes_path, (list, dict), MAKE_EVAL)
    id_map = load_pickle(map_path, dict, MAKE_EVAL)
    embeddings = load_matrix(matrix_path, MAKE_EVAL)

    ids, items = np.unique(sequences.items, return_inverse=True)
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
    codebook = noted_codebook(codes_path)
    codes = codes_array([by_id[item] for item in ids.tolist()], codes_path, codebook)
    rows = np.fromiter((id_map[item] for item in ids.tolist()), np.int64, len(ids))
    catalog = Catalog(codes, embeddings, rows, str(matrix_path), codebook)
    sequences = Sequences(sequences.users, items, sequences.offsets)
    return Interactions(sequences, catalog, *made_by(codes_path, matrix_path), has_last_targets(folder), ids)


def has_last_targets(folder: str | Path) -> bool:
    """Whether the dataset.json of a folder like data/eval says that only the last item of each history is a target.

    InputError if it says something else of them.
    """
    path = Path(folder) / MANIFEST
    targets = read_json(path, missing_ok=True).get("targets")
    if targets not in (None, LAST):
        raise InputError(f'{path}: "targets" is {shown(targets)}, expected "{LAST}" or nothing. Mend or remove it.')
    return targets == LAST


def dataset_folder(name: str) -> Path:
    """The directory of --dataset: data/test/NAME, data/NAME (as in test/steam) or NAME; InputError if none exists."""
    for folder in (Path("data/test") / name, Path("data") / name, Path(name)):
        if folder.is_dir():
            return folder
    there = sorted(path.name for path in Path("data/test").glob("*") if path.is_dir())
    raise InputError(
        f"--dataset {name}: no directory data/test/{name}, data/{name} or {name} exists "
        f"({'there are ' + ', '.join(there) if there else 'data/test is empty'}). {MAKE_TEST}"
    )


def load_test(folder: Path, cold: bool, drop_short: bool = False) -> TestSet:
    """Load a data set directory: test.pkl or cold_test.pkl, item_text_embeddings.npy and, if it exists, train.pkl.

    InputError for a bad file, or an item id without a row.
    """
    path, embeddings_path = folder / ("cold_test.pkl" if cold else "test.pkl"), folder / "item_text_embeddings.npy"
    check_whole(folder / MANIFEST)
    check_encoded(embeddings_path)
    sequences = load_sequences(path, MAKE_TEST, drop_short)
    embeddings = load_matrix(embeddings_path, MAKE_TEST)
    check_ids(sequences, len(embeddings), path, str(embeddings_path))

    train_path = folder / "train.pkl"
    log = load_sequences(train_path, MAKE_TEST, shortest=0) if train_path.is_file() else None
    if log:
        check_ids(log, len(embeddings), train_path, str(embeddings_path))
        tell_leaks(log, sequences, train_path, path)
    times = None if cold else load_last_times(folder / "test_times.pkl", sequences, path)
    return TestSet(sequences, embeddings, embeddings_path, log or None, times)


def tell_leaks(log: Sequences, test: Sequences, log_path: Path, test_path: Path) -> None:
    """Print how many users have their whole list of the test, with its target, in the log: it must end before that.

    Fewer than one in a hundred are not told: where each file has numbered its users for itself, short lists may agree.
    """
    logged = {user: row for row, user in enumerate(log.users)}
    rows = np.array([(row, logged[user]) for row, user in enumerate(test.users) if user in logged], dtype=np.int64)
    shared, same = test.select(rows.reshape(-1, 2)[:, 0]), log.select(rows.reshape(-1, 2)[:, 1])
    leaks = sum(there[: len(here)] == here for here, there in zip(shared.lists(), same.lists(), strict=True))
    if leaks > len(test) / 100:
        print(  # noqa: T201
            f"Warning: {log_path} has the whole list of {leaks} of {len(test)} users of {test_path}, with the target. "
            "Whatever learns from it knows these answers: leave their last items out of it."
        )


def load_last_times(path: Path, sequences: Sequences, owner: Path) -> np.ndarray | None:
    """Load the times of each user's last two items, (U, 2) float64; None where there is no test_times.pkl.

    Raises:
        InputError: users or lengths differ from those of the sequences, or a time is no finite number.
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
