"""The packed form of pre-training data: flat arrays that open by memory mapping, whatever their size.

    data/pre_train/packed/items.npy      (interactions,) int32, all histories one after another
                          offsets.npy    (U + 1,) int64, history i is items[offsets[i]:offsets[i + 1]]
                          codes.npy      (N, K) int16
                          embeddings.npy (N, E) float16 or float32, only where a dtype was asked for
                          packed.json    the header: counts, encoder, tokenizer, a fingerprint of each file, and
                                         which files they were made from

Without embeddings.npy the header refers to all_item_text_embeddings.npy beside the folder, which is mapped as it is.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from utils.data import Catalog, Sequences
from utils.datasets import CODES, EMBEDDINGS, HISTORIES, MAKE_PRE_TRAIN, Interactions, load_pre_train
from utils.errors import InputError
from utils.files import (
    expect_random_rows,
    fingerprint,
    identity,
    load_array,
    load_matrix,
    read_json,
    save_json,
    save_matrix,
    staged_directory,
)
from utils.fsq import PUBLISHED, Codebook
from utils.matrices import RowCopy, copy_rows, resumable_matrix

FORMAT = 1
HEADER = "packed.json"
ARRAYS = ("items.npy", "offsets.npy", "codes.npy")
CHUNK = 1 << 14  # rows of embeddings that are in memory at once
COUNTED, COUNTED_USERS = 1 << 24, 1 << 20  # interactions whose items are counted at once, and users
PACK = "Make the packed form again: python data_processing/pack.py --data_path {} --force."


def pack(folder: str | Path, dtype: str | None = None, drop_short: bool = False) -> dict[str, Any]:
    """Make FOLDER/packed from train.pkl, token_id_list.pkl and all_item_text_embeddings.npy; returns its header.

    Args:
        folder: release layout.
        dtype: float16 or float32 for embeddings of its own; None to map the matrix of the folder as it is.
        drop_short: leave out histories of fewer than two items, instead of refusing them.

    Raises:
        InputError: see `load_pre_train`; or a full disk.
    """
    folder = Path(folder)
    sources = _sources(folder)
    data = load_pre_train(folder, drop_short)
    embeddings = f"../{EMBEDDINGS}" if dtype is None else "embeddings.npy"
    with converted_embeddings(folder, dtype) as made, staged_directory(folder / "packed") as staging:
        arrays = (data.sequences.items.astype(np.int32, copy=False), data.sequences.offsets, data.catalog.codes)
        content = hashlib.blake2b(digest_size=16)
        for name, array in zip(ARRAYS, arrays, strict=True):
            save_matrix(staging / name, array)
            content.update(np.ascontiguousarray(array))
        header = {
            "format": FORMAT,
            "histories": len(data.sequences),
            "interactions": len(data.sequences.items),
            "items": len(data.catalog),
            "embedding_width": data.catalog.embeddings.shape[1],
            "guessing_loss": guessing_loss(data.sequences, data.catalog),
            "drop_short": drop_short,
            "encoder": data.encoder,
            "tokenizer": data.tokenizer,
            **data.catalog.codebook.noted(),
            "embeddings": embeddings,
            "dtype": dtype,
            "content": content.hexdigest(),
            "files": {**{name: fingerprint(staging / name) for name in ARRAYS}, embeddings: made},
            "sources": sources,
        }
        if changed := [name for name, known in _sources(folder).items() if sources.get(name) != known]:
            raise InputError(f"{folder / changed[0]} changed while it was packed. Run again when it is whole.")
        save_json(staging / HEADER, header)
    return header


def _sources(folder: Path) -> dict[str, list[Any]]:
    """Name -> identity of the files that are packed; a file that does not exist is left out."""
    return {name: identity(folder / name) for name in (HISTORIES, CODES, EMBEDDINGS) if (folder / name).is_file()}


@contextlib.contextmanager
def converted_embeddings(folder: Path, dtype: str | None) -> Iterator[str]:
    """Copy the matrix (N, E) to packed/embeddings.npy in another dtype, and yield the fingerprint of the copy.

    The copy gets its name when the block ends without an error; a killed run goes on where it stopped. With `dtype`
    None nothing is copied, and the fingerprint is that of the matrix itself.
    """
    source = folder / EMBEDDINGS
    if dtype is None:
        yield fingerprint(source)
        return
    matrix = load_matrix(source, MAKE_PRE_TRAIN)
    job = {"from": identity(source)}
    with resumable_matrix(folder / "packed/embeddings.npy", matrix.shape, dtype, job) as filling:
        copy_rows(filling, [RowCopy(f"{source} as {dtype}", matrix)], CHUNK, label="embeddings")
        yield filling.finish()


def is_current(folder: str | Path, drop_short: bool = False, dtype: str | None = None) -> bool:
    """Whether FOLDER/packed exists and was made, with the same `drop_short`, from the files that are in FOLDER now.

    Files that have been deleted since are not compared. With `dtype` None the dtype of the embeddings does not matter.
    """
    folder = Path(folder)
    if not (folder / "packed" / HEADER).is_file():
        return False
    header = read_json(folder / "packed" / HEADER)
    sources = header.get("sources")
    return (
        header.get("format") == FORMAT
        and isinstance(sources, dict)
        and dtype in (None, header.get("dtype"))
        and (header.get("drop_short") == drop_short or not (folder / HISTORIES).is_file())
        and all(sources.get(name) == known for name, known in _sources(folder).items())
    )


def data_fingerprint(folder: str | Path) -> str:
    """Hash of what FOLDER/packed holds, by which --resume knows the data again; a copy of the folder has the same."""
    header = read_json(Path(folder) / "packed" / HEADER) | {"sources": None}
    for name, value in PUBLISHED.noted().items():  # which older headers do not say
        if header.get(name) == value:
            del header[name]
    return hashlib.blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=16).hexdigest()


def open_packed(folder: str | Path) -> tuple[Interactions, dict[str, Any]]:
    """Memory-map FOLDER/packed without copying anything; returns the data and the header.

    Raises:
        InputError: no packed form, one of another version, or a file that is not the one the header was written with.
    """
    folder = Path(folder)
    packed, again = folder / "packed", PACK.format(folder)
    path = packed / HEADER
    if not path.is_file():
        raise InputError(f"{path} does not exist. {again}")
    header = read_json(path)
    if header.get("format") != FORMAT:
        raise InputError(f"{path} has format {header.get('format')!r}, this program reads {FORMAT}. {again}")
    arrays = {}
    for name, expected in header["files"].items():
        arrays[name] = load_array(packed / name, again)
        if fingerprint(packed / name) != expected:
            raise InputError(f"{packed / name} is not the file that {path} was written with. {again}")
    embeddings = header["embeddings"]
    expect_random_rows(arrays[embeddings])
    sequences = Sequences(None, arrays["items.npy"], arrays["offsets.npy"])
    matrix, codebook = packed / embeddings, Codebook.read(header, path)
    catalog = Catalog(arrays["codes.npy"], arrays[embeddings], source=str(matrix.resolve()), codebook=codebook)
    counts = {"histories": len(sequences), "interactions": len(sequences.items), "items": len(catalog)}
    unlike = catalog.codes.ndim != 2 or catalog.codes.shape[1] != codebook.per_item
    if not unlike and codebook != PUBLISHED:  # a few bytes for each item, which nobody else may have written
        unlike = len(catalog) and not 0 <= catalog.codes.min() <= catalog.codes.max() < codebook.size
    if unlike:
        raise InputError(f"{packed / 'codes.npy'} does not have {codebook}, as {path} says. {again}")
    if header | counts != header:
        raise InputError(f"{path} counts something else than its files hold, {counts}. {again}")
    return Interactions(sequences, catalog, header.get("tokenizer"), header.get("encoder")), header


def guessing_loss(sequences: Sequences, catalog: Catalog, users: np.ndarray | None = None) -> float:
    """Loss in nats of guessing each of an item's codes by its frequency among the interactions: the codes' entropy.

    `users` are the rows (n,) of those whose interactions count; by default all.
    """
    counts = item_counts(sequences, catalog, users)
    return float(np.mean([entropy(np.bincount(codes, weights=counts)) for codes in catalog.codes.T]))


def item_counts(sequences: Sequences, catalog: Catalog, users: np.ndarray | None = None) -> np.ndarray:
    """How often each item occurs, (N,) int64, in all histories or in those of some rows (n,)."""
    if users is None:
        parts = (sequences.items[start : start + COUNTED] for start in range(0, len(sequences.items), COUNTED))
    else:
        starts = range(0, len(users), COUNTED_USERS)
        parts = (sequences.select(users[start : start + COUNTED_USERS]).items for start in starts)
    counts = np.zeros(len(catalog), dtype=np.int64)
    for items in parts:
        counts += np.bincount(items, minlength=len(catalog))
    return counts


def entropy(counts: np.ndarray) -> float:
    """Entropy in nats of a distribution, given as counts (n,)."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())
