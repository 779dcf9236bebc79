"""From item texts to sentence embeddings on disk, computed by an encoder or copied from a given matrix."""

import argparse
import contextlib
import hashlib
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from data_processing.parts.merging import REMEDY
from data_processing.parts.missing import has_text
from utils.cli import positive_int
from utils.datasets import noted_encoder
from utils.errors import InputError
from utils.files import content, identity, load_matrix, save_json
from utils.matrices import RowCopy, copy_rows, resumable_matrix

DEFAULT_ENCODER = "sentence-transformers/all-mpnet-base-v2"
DEFAULT_BATCH = 64  # texts
CHUNK = 1 << 12  # items whose texts are sorted by length and encoded together


def add_encoder_flags(flags: argparse.ArgumentParser, rows: str) -> None:
    """Add --encoder or, in its place, --embeddings, a matrix whose rows are `rows`; and --batch_size."""
    given = flags.add_mutually_exclusive_group()
    given.add_argument("--encoder", default=DEFAULT_ENCODER, help="sentence-transformers model or local directory")
    given.add_argument("--embeddings", metavar="FILE", help=f".npy ({rows}, width) to use instead of an encoder")
    flags.add_argument("--batch_size", type=positive_int, default=DEFAULT_BATCH, help="texts encoded at once")


def item_text(fields: dict[str, Any]) -> str:
    """Return the text of an item as the release encodes it: Python's str() of the fields without any { or }."""
    return str(fields).replace("{", "").replace("}", "")


def require_encoder(name: str) -> None:
    """Raise InputError if the encoder is named by a path and there is no such directory."""
    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise InputError(f"--encoder {name} is not a directory. Name one with a sentence-transformers model.")


def load_encoder(name: str, device: torch.device | str) -> Any:
    """Load the SentenceTransformer of that name or directory; raise InputError if it cannot be fetched or loaded."""
    require_encoder(name)
    try:
        from sentence_transformers import SentenceTransformer  # heavy, and only needed here
    except ImportError as error:
        raise InputError(
            f"Encoding texts needs sentence-transformers ({error}): pip install -r requirements.txt."
        ) from error
    try:
        return SentenceTransformer(name, device=str(device), trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[:1]
        raise InputError(
            f"--encoder {name} cannot be loaded ({''.join(reason)}). Where the Hub is out of reach, name a local "
            "directory with a sentence-transformers model, or a mirror in HF_ENDPOINT."
        ) from error


class Encoding(NamedTuple):
    """An encoder and how it is used."""

    name: str  # of the encoder
    encoder: Any  # a SentenceTransformer
    batch_size: int  # texts that are encoded at once
    pool: dict[str, Any] | None = None  # processes that share the work, from `process_pool`

    def encode(self, texts: list[str]) -> np.ndarray:
        """Encode n texts as (n, E) float32 sentence embeddings of unit length."""
        embeddings = self.encoder.encode(
            texts,
            batch_size=self.batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
            pool=self.pool,
        )
        return np.asarray(embeddings, dtype=np.float32)


@contextlib.contextmanager
def process_pool(encoder: Any, devices: list[str] | None) -> Iterator[dict[str, Any] | None]:
    """Start the processes of sentence-transformers, one for each device; yield None where no devices are named.

    The processes ignore Ctrl-C, which a terminal sends to every process: this one ends them.
    """
    if devices is None:
        yield None
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pool = encoder.start_multi_process_pool(devices)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield pool
    finally:
        encoder.stop_multi_process_pool(pool)


def texts_to_encode(item_texts: dict[int, dict[str, Any]], source: str | Path) -> dict[int, str]:
    """Item id -> text, for the items that have any; raise InputError if none has."""
    texts = {item: item_text(fields) for item, fields in item_texts.items() if has_text(list(fields.values()))}
    if not texts:
        raise InputError(f"{source}: no item has any text; expected fields such as title. {REMEDY}")
    return texts


def count_truncated(encoder: Any, texts: list[str]) -> int:
    """Count the texts that have more tokens than the encoder reads; 0 where it has no limit."""
    limit = getattr(encoder, "max_seq_length", None) or math.inf
    # A token has one byte or more, and two tokens mark beginning and end: short texts need not be tokenized.
    long = [text for text in texts if len(text.encode(errors="surrogatepass")) + 2 > limit]
    batches = (long[start : start + CHUNK] for start in range(0, len(long), CHUNK))
    tokens = (encoder.tokenizer(batch, truncation=False, verbose=False)["input_ids"] for batch in batches)
    return sum(len(ids) > limit for batch in tokens for ids in batch)


def texts_digest(texts: dict[int, str]) -> str:
    """Hash of item id -> text: embeddings that a killed run has left are used only for the same texts."""
    digest = hashlib.blake2b(digest_size=16)
    for item, text in texts.items():
        digest.update(f"{item} {len(text)} {text}".encode(errors="surrogatepass"))
    return digest.hexdigest()


@contextlib.contextmanager
def encoded_embeddings(
    directory: Path, texts: dict[int, str], count: int, encoding: Encoding
) -> Iterator[dict[str, Any]]:
    """Encode item id -> text into DIRECTORY/item_text_embeddings.npy (count, E) float32; other items get zero rows.

    Yields what belongs into item_text_embeddings.json, which is to be written in the block: the matrix gets its name
    when the block ends without an error. A killed run resumes where it stopped; which texts are encoded together does
    not depend on that. Prints how many texts are longer than what the encoder reads.
    """
    truncated = count_truncated(encoding.encoder, list(texts.values()))
    if truncated:
        limit = encoding.encoder.max_seq_length
        longer = f"{truncated} of {len(texts)} texts are longer than the {limit} tokens that the encoder reads"
        print(f"{directory}: {longer}, and are cut")
    path = directory / "item_text_embeddings.npy"
    shape = (count, encoding.encoder.get_embedding_dimension())
    job = {"encoder": encoding.name, "text_digest": texts_digest(texts), "batch_size": encoding.batch_size}
    with resumable_matrix(path, shape, np.float32, job) as filling:
        with tqdm(total=count, initial=filling.done, desc=f"encoding {directory}", unit=" items") as progress:
            for start in range(filling.done, count, CHUNK):
                end = min(start + CHUNK, count)
                items = [item for item in range(start, end) if item in texts]
                if items:
                    filling.matrix[items] = encoding.encode([texts[item] for item in items])
                filling.note(end)
                progress.update(end - start)
        yield {"encoder": encoding.name, "rows": count, "width": shape[1], "files": {path.suffix: filling.finish()}}


def save_metadata(staging: Path, metadata: dict[str, Any]) -> None:
    """Write item_text_embeddings.json, which says that the matrix is of the item_text_dict.pkl in the same folder."""
    save_json(staging / "item_text_embeddings.json", {"texts": content(staging / "item_text_dict.pkl"), **metadata})


@contextlib.contextmanager
def given_embeddings(
    output: Path, source: Path, rows: np.ndarray, expected: int, which: str
) -> Iterator[dict[str, Any]]:
    """Copy rows of the matrix of --embeddings to OUTPUT/item_text_embeddings.npy; otherwise as `encoded_embeddings`.

    `rows` (N,) int64 has the row of each item in the `.npy` `source`; a negative number gives a zero row. `source` must
    have `expected` rows, which the message describes by `which`.

    Raises:
        InputError: a damaged file, another number of rows, or an embedding that is not finite; names the row.
    """
    matrix = load_matrix(source, "Leave out --embeddings to encode the texts.")
    if len(matrix) != expected:
        raise InputError(f"--embeddings {source} has {len(matrix)} rows, expected {expected}: {which}.")
    encoder, path, shape = noted_encoder(source), output / "item_text_embeddings.npy", (len(rows), matrix.shape[1])
    job = {"from": identity(source), "copied": hashlib.blake2b(rows.tobytes(), digest_size=16).hexdigest()}
    known = np.flatnonzero(rows >= 0)
    with resumable_matrix(path, shape, matrix.dtype, job) as filling:
        copy_rows(filling, [RowCopy(f"--embeddings {source}", matrix, rows[known], known)], CHUNK)
        yield {"encoder": encoder, "rows": shape[0], "width": shape[1], "files": {path.suffix: filling.finish()}}
