"""What a bundle is made of, and how it is written and put in its place.

Letters of the shapes as in utils/data.py: N items, E embedding width.
"""

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from serving.bundles import (
    ARRAYS,
    HEADER,
    PREFIX,
    VERSION,
    Bundle,
    check_header,
    header_hash,
    item_title,
    read_header,
    save_whitening,
)
from serving.log import save_log
from serving.scoring import Parts, blend_origin, load_fitted_with, scores_of_all
from serving.store import FILE, Item, ItemStore, check_id
from utils.blend import NO_LOG, WITH_LOG, WITH_NETWORK, Domain, Fitted, fit_to_log
from utils.blend_files import SHIPPED, load_blends, origin_of_fit, save_blends
from utils.data import Sequences
from utils.datasets import HISTORIES, TestSet
from utils.errors import InputError
from utils.files import fingerprint, save_json
from utils.names import Names
from utils.scores import Statistics
from utils.whitening import Whitening, are_whitened

RANKINGS = {"blend": WITH_NETWORK, "log": WITH_LOG, "model": None, "text": NO_LOG}  # name -> blend
USERS = 96  # in a batch of the fit
OWN = re.compile(rf"{PREFIX}[0-9a-f]{{8}}|\.{re.escape(HEADER)}\..*\.partial")  # that a killed command may leave
WITHIN = (
    "whitening.npz",
    "prepared.npz",
    "model",
    "tokenizer",
    "blend.json",
    "log",
    *(f"{name}.bin" for name in ARRAYS),
)
LOCK = ".lock"  # of who makes a bundle in a folder


class Making(NamedTuple):
    """What a bundle is made of."""

    test: TestSet
    names: Names  # of its items
    texts: dict[int, dict]  # their text fields
    others: dict[int, dict]  # their further fields
    rows: np.ndarray  # (N, E) float32, embeddings, whitened
    whitening: Whitening
    parts: Parts | None  # of a bundle with a model
    blend: dict[str, Fitted]  # none for the model alone
    rank_by: str
    encoder: str | None  # the name of the sentence encoder, where it is known
    made_from: dict[str, str | None]  # what the user named


def whole_histories(test: TestSet) -> Sequences | None:
    """The log with the last items: a list of the test stands in for the beginning of it that the log has."""
    if test.log is None:
        return None
    lists = dict(zip(test.log.users, test.log.lists(), strict=True))
    others = []
    for user, items in zip(test.sequences.users, test.sequences.lists(), strict=True):
        if user not in lists or lists[user] == items[: len(lists[user])]:
            lists[user] = items
        else:  # another user, as where each file has numbered its users for itself
            others.append(items)
    if others:
        print(f"{len(others)} lists of the test go on no list of {HISTORIES}: counted as those of other users")
    return Sequences.of(*lists.values(), *others)


def obtain_blend(
    rank_by: str, test: TestSet, rows: np.ndarray, parts: Parts | None, ckpt_path: str | None
) -> dict[str, Fitted]:
    """The blend of a ranking, read from DATASET/blend.json where that fits, or fitted; none for the model alone."""
    kind = RANKINGS[rank_by]
    if kind is None:
        return {}
    if kind == NO_LOG:
        return {kind: Fitted(load_blends(SHIPPED)[kind], 0)}
    folder, network, made_with = test.embeddings_path.parent, None, {}
    if parts is not None:
        log = folder / HISTORIES
        predicts, device = parts.model.config.predicts, next(parts.model.parameters()).device
        fitted_with = load_fitted_with(parts.metadata, ckpt_path, predicts, device, log) or parts.model
        made_with = blend_origin(parts.model, fitted_with, parts.tokenizer)
        network = partial(scores_of_all, fitted_with, parts.catalog, USERS)
        try:
            made_from = origin_of_fit(test, made_with, exclude_history=True)
            blend = load_blends(folder / "blend.json", made_from, (kind,))[kind]
        except InputError:
            pass  # none, or one made from other files
        else:
            print(f"weights of the blend: {folder / 'blend.json'}")
            return {kind: Fitted(blend, 0)}
    candidates = np.flatnonzero(np.any(test.embeddings, axis=1))
    fitted = fit_to_log(test.log, rows, candidates, exclude_history=True, network=network)[kind]
    print(f"weights of the blend: fitted to the last items of {fitted.users} users of {HISTORIES}")
    return {kind: fitted}


def put_in_place(output: Path, version: Path, making: Making) -> None:
    """Write into the empty folder `version` of `output`, let bundle.json name it, and remove earlier ones there.

    InputError for what could not be opened again, which replaces nothing.
    """
    write(version, making)
    files = sorted(path for path in version.rglob("*") if path.is_file() and path.suffix not in (".bin", ".sqlite"))
    header = {
        "version": VERSION,
        "folder": version.name,
        "rank_by": making.rank_by,
        "encoder": making.encoder,
        "fields": names_of_fields(making.texts),
        "others": names_of_fields(making.others),
        "numbers": all(type(name) is int for name in making.names.ids),
        "arrays": widths(making.test, making.parts),
        "files": {str(path.relative_to(version)): fingerprint(path) for path in files},
        "made_from": making.made_from,
    }
    header = json.loads(json.dumps(header))  # as it will be read
    header["hash"] = header_hash(header)
    check_header(output / HEADER, header)
    Bundle(output / HEADER, header, "cpu").store.items([0])  # what cannot be opened replaces nothing
    save_json(output / HEADER, header)
    for earlier in output.iterdir():
        if earlier.name not in (HEADER, LOCK, version.name) and is_own(earlier):
            shutil.rmtree(earlier, ignore_errors=True) if earlier.is_dir() else earlier.unlink(missing_ok=True)


def is_own(path: Path) -> bool:
    """Whether a file or folder is a bundle's, so that it may be replaced or removed."""
    if path.is_symlink():
        return False
    if path.name == HEADER:
        try:
            read_header(path)
        except InputError:
            return False
        return True
    if path.is_dir():
        own = all(entry.name in WITHIN or entry.name.startswith((FILE, LOCK)) for entry in path.iterdir())
        return own and bool(OWN.fullmatch(path.name))
    return path.name == LOCK or bool(OWN.fullmatch(path.name))


def reads_texts(test: TestSet, parts: Parts) -> bool:
    """Whether a model reads embeddings as texts are compared by; of few items only the former are whitened."""
    return parts.tokenizer.whitens and are_whitened(*test.embeddings.shape)


def widths(test: TestSet, parts: Parts | None) -> dict[str, tuple[int, str]]:
    """The arrays of a bundle: name -> width and dtype."""
    arrays = {"texts": (test.embeddings.shape[1], "float32")}
    if parts is not None:
        arrays["codes"] = (parts.catalog.codes.shape[1], "int16")
        if not reads_texts(test, parts):
            arrays["embeddings"] = arrays["texts"]
    return arrays


def write(version: Path, making: Making) -> None:
    """Write all but bundle.json into an empty folder."""
    test, names, texts, others, rows, whitening, parts, blend, rank_by, *_ = making
    save_whitening(version / "whitening.npz", whitening)
    if parts is not None:
        parts.model.save_weights(version / "model")
        parts.tokenizer.save_weights(version / "tokenizer")
    if blend:
        save_blends(version / "blend.json", blend, {"rank_by": rank_by})
    if rank_by in ("blend", "log"):
        domain = Domain.of(Statistics.of(rows, whole_histories(test)))
        (version / "log").mkdir()
        save_log(version / "log", domain.log, domain.ease)
    try:
        ids = [check_id(name) for name in names.ids]
    except ValueError as error:
        raise InputError(
            f"{test.embeddings_path.parent / 'item_ids.jsonl'}: {error}. Make the data set again (import_dataset.py)."
        ) from error
    known = [{**(texts.get(number) or {}), **others.get(number, {})} for number in range(len(ids))]
    encoded = names_of_fields(texts)
    items = [Item(name, item_title(fields, encoded), fields) for name, fields in zip(ids, known, strict=True)]
    arrays = {"texts": rows}
    if parts is not None:
        arrays |= {"codes": parts.catalog.codes, "embeddings": test.embeddings}
        if parts.tokenizer.whitens and not reads_texts(test, parts):
            preparing = Whitening.of(test.embeddings)
            save_whitening(version / "prepared.npz", preparing)
            arrays["embeddings"] = preparing(test.embeddings)
    store = ItemStore.create(version, widths(test, parts))
    store.append(items, arrays, ~np.any(test.embeddings, axis=1))


def names_of_fields(fields: dict[int, dict]) -> list[str]:
    """The names of the fields of all items, in the order in which they come up."""
    return list(dict.fromkeys(name for one in fields.values() for name in one))
