"""From item texts to sentence embeddings on disk, computed by an encoder or copied from a given matrix."""

import argparse
import contextlib
import hashlib
import importlib.metadata
import math
import signal
import sys
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
GPU_BATCH, CPU_BATCH = 64, 16  # texts; more at once are slower on a CPU (docs/performance.md)
BATCH_HELP = f"texts encoded at once; {CPU_BATCH} on a CPU by default, {GPU_BATCH} on a GPU"
CHUNK = 1 << 12  # items whose texts are sorted by length and encoded together
FLOAT32, BFLOAT16 = "float32", "bfloat16"  # what the encoder multiplies; its weights and all sums are float32
ROUNDED = f", {BFLOAT16}"  # ends the name of an encoder that multiplies bfloat16, as its embeddings are others
PACKAGE = "package:"  # stands before the name of an installed package that holds a model
MODEL_FILES = ("modules.json", "config_sentence_transformers.json")  # either marks a model's directory
ENCODER_HELP = "sentence-transformers model, local directory, or package:NAME, an installed package that holds one"


def add_encoder_flags(flags: argparse.ArgumentParser, rows: str) -> None:
    """Add --encoder or, in its place, --embeddings, a matrix whose rows are `rows`; and --batch_size."""
    given = flags.add_mutually_exclusive_group()
    given.add_argument("--encoder", default=DEFAULT_ENCODER, help=ENCODER_HELP)
    given.add_argument("--embeddings", metavar="FILE", help=f".npy ({rows}, width) to use instead of an encoder")
    flags.add_argument("--batch_size", type=positive_int, help=BATCH_HELP)
    add_precision_flag(flags)


def add_precision_flag(flags: argparse.ArgumentParser) -> None:
    """Add --encoder_precision, which `noted_name` reads."""
    flags.add_argument(
        "--encoder_precision",
        choices=(FLOAT32, BFLOAT16),
        default=FLOAT32,
        help="bfloat16 is faster on processors that multiply it (AVX512_BF16, AMX, GPUs); embeddings differ a little",
    )


def noted_name(args: argparse.Namespace) -> str:
    """Name of the encoder as it is noted beside the embeddings: --encoder, with what --encoder_precision adds."""
    return args.encoder.removesuffix(ROUNDED) + ROUNDED if args.encoder_precision == BFLOAT16 else args.encoder


def item_text(fields: dict[str, Any]) -> str:
    """Return the text of an item as the release encodes it: Python's str() of the fields without any { or }."""
    return str(fields).replace("{", "").replace("}", "")


def require_encoder(name: str) -> str:
    """Return the directory or the Hub's name to load for `name`, which may end with the precision, as it is noted.

    Raises:
        InputError: `name` is a path without a directory, or a package that is not installed or has not just one model.
    """
    name = name.removesuffix(ROUNDED)
    if name.startswith(PACKAGE):
        return str(package_directory(name))
    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise InputError(f"--encoder {name} is not a directory. Name one with a sentence-transformers model.")
    return name


def package_directory(name: str) -> Path:
    """Find the model's directory in the installed package that "package:NAME" names; none of its code is run.

    NAME is what `pip install` takes, with hyphens or underscores. Only in a package without any modules.json does
    config_sentence_transformers.json mark the directory.

    Raises:
        InputError: no such package is installed, or not just one directory in it has a model.
    """
    package = name.removeprefix(PACKAGE)
    try:
        files = importlib.metadata.files(package) or []
    except (importlib.metadata.PackageNotFoundError, ValueError) as error:  # a ValueError where NAME is empty
        raise InputError(
            f"--encoder {name} names no package that is installed in {sys.prefix}. Run pip install "
            f"{package or 'NAME'}, or name a local directory."
        ) from error
    for marker in MODEL_FILES:
        paths = (Path(str(file.locate())) for file in files if file.name == marker)
        found = sorted({path.parent for path in paths if path.is_file()})
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(
                f"--encoder {name}: the package has {len(found)} directories with {marker}, the first is {found[0]}. "
                f"Name the one you mean, such as --encoder {found[1]}"
            )
    raise InputError(
        f"--encoder {name}: the package has no directory with {' or '.join(MODEL_FILES)}. Name another package, or "
        "--encoder DIR with a sentence-transformers model."
    )


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions that multiply bfloat16, such as AVX512_BF16 and AMX."""
    return any(there is True and "bf16" in name for name, there in torch.cpu.get_capabilities().items())


def load_encoder(name: str, device: torch.device | str) -> Any:
    """Load the SentenceTransformer that `name` names to --encoder; raise InputError if it cannot be found or loaded.

    Warns where `name` asks for bfloat16 of a processor that has to imitate it.
    """
    source = require_encoder(name)
    if name.endswith(ROUNDED) and torch.device(device).type == "cpu" and not multiplies_bfloat16():
        warning = "warning: this processor cannot multiply bfloat16, and is two to four times as fast with float32"
        print(warning, file=sys.stderr)  # --json of serving.recommend has stdout to itself
    try:
        from sentence_transformers import SentenceTransformer  # heavy, and only needed here
    except ImportError as error:
        raise InputError(
            f"Encoding texts needs sentence-transformers ({error}): pip install -r requirements.txt."
        ) from error
    try:
        return SentenceTransformer(source, device=str(device), trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[:1]
        raise InputError(
            f"--encoder {name} cannot be loaded ({''.join(reason)}). Where the Hub is out of reach, name a local "
            "directory or an installed package (package:NAME) with a sentence-transformers model, or a mirror in "
            "HF_ENDPOINT."
        ) from error


class Encoding(NamedTuple):
    """An encoder and how it is used."""

    name: str  # of the encoder, with ROUNDED at its end if it is to multiply bfloat16
    encoder: Any  # a SentenceTransformer
    given_batch: int | None = None  # texts that are encoded at once; None: what suits the device
    pool: dict[str, Any] | None = None  # processes that share the work, from `process_pool`

    @property
    def batch_size(self) -> int:
        """Texts that are encoded at once."""
        device = getattr(self.encoder, "device", None)
        return self.given_batch or (
            CPU_BATCH if self.pool is None and getattr(device, "type", "cpu") == "cpu" else GPU_BATCH
        )

    def encode(self, texts: list[str]) -> np.ndarray:
        """Encode n texts as (n, E) float32 sentence embeddings of unit length."""
        precision = contextlib.nullcontext()
        if self.name.endswith(ROUNDED):
            precision = torch.autocast(self.encoder.device.type, torch.bfloat16)
        with precision:
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


def first_items(texts: dict[int, str], count: int) -> np.ndarray:
    """For each item of a catalog of `count` the lowest id with the same text, (count,) int64; -1 for no text.

    Holds one dict of the distinct texts meanwhile, not their copies: 1.2 GiB for 15 million.
    """
    first: dict[str, int] = {}
    ids = ((item, texts.get(item)) for item in range(count))
    return np.fromiter((-1 if text is None else first.setdefault(text, item) for item, text in ids), np.int64, count)


@contextlib.contextmanager
def encoded_embeddings(
    directory: Path, texts: dict[int, str], count: int, encoding: Encoding
) -> Iterator[dict[str, Any]]:
    """Encode item id -> text into DIRECTORY/item_text_embeddings.npy (count, E) float32; other items get zero rows.

    Yields what belongs into item_text_embeddings.json, which is to be written in the block: the matrix gets its name
    when the block ends without an error. A killed run resumes where it stopped; which texts are encoded together does
    not depend on that. Of equal texts in the whole catalog the first is encoded, and the other rows are copies of its
    row: they are equal bit by bit, though the last digits of an embedding depend on the texts beside it. Prints how
    many texts are longer than what the encoder reads.
    """
    truncated = count_truncated(encoding.encoder, list(texts.values()))
    if truncated:
        limit = encoding.encoder.max_seq_length
        longer = f"{truncated} of {len(texts)} texts are longer than the {limit} tokens that the encoder reads"
        print(f"{directory}: {longer}, and are cut")
    path = directory / "item_text_embeddings.npy"
    shape = (count, encoding.encoder.get_embedding_dimension())
    job = {
        "encoder": encoding.name,
        "text_digest": texts_digest(texts),
        "batch_size": encoding.batch_size,
        "encoded": "distinct texts",  # what a version that encoded every text has left is not continued
    }
    first = first_items(texts, count)
    with resumable_matrix(path, shape, np.float32, job) as filling:
        with tqdm(total=count, initial=filling.done, desc=f"encoding {directory}", unit=" items") as progress:
            for start in range(filling.done, count, CHUNK):
                end = min(start + CHUNK, count)
                items, same = np.arange(start, end), first[start:end]
                new, again = items[same == items], items[(same >= 0) & (same < items)]
                if len(new):
                    filling.matrix[new] = encoding.encode([texts[item] for item in new.tolist()])
                filling.matrix[again] = filling.matrix[first[again]]  # rows of this chunk, or of one before it
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
