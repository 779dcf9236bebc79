"""Turn the item texts of one or more data sets into sentence embeddings.

    python data_processing/TextEncoder_batch.py --input data/baby
    python data_processing/TextEncoder_batch.py --input data/books data/toys --encoder ./models/all-MiniLM-L6-v2

Reads item_text_dict.pkl of each directory and writes beside it item_text_embeddings.npy (largest item id + 1, width)
float32, unit rows, zero where an item has no text, and item_text_embeddings.json (encoder, rows, width). The encoder is
any sentence-transformers model, by its name on the Hub or as a local directory; no code of a model is run. Printed is
how many texts are longer than what the encoder reads. A run that was killed goes on where it stopped.
"""

import contextlib
import functools
import hashlib
import math
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):  # run as a file: let the repository root be found
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import numpy as np
import torch
from tqdm import tqdm

from data_processing.parts.merging import REMEDY, count_ids, load_item_texts
from data_processing.parts.texts import has_text
from utils.cli import parser, positive_int, run
from utils.errors import InputError
from utils.files import (
    MANIFEST,
    check_whole,
    content,
    load_matrix,
    read_json,
    require_file,
    save_json,
    staged_directory,
)
from utils.matrices import resumable_matrix
from utils.util import add_device_flags, pick_device

DEFAULT_ENCODER = "sentence-transformers/all-mpnet-base-v2"
DEFAULT_BATCH = 64  # texts
CHUNK = 1 << 12  # items whose texts are sorted by length, and encoded, together


def main() -> None:
    """Parse; encode each data set, with an encoder that is loaded once."""
    flags = parser(__doc__)
    flags.add_argument("--input", nargs="+", required=True, metavar="DIR", help="directories with item_text_dict.pkl")
    flags.add_argument("--encoder", default=DEFAULT_ENCODER, help="sentence-transformers model or local directory")
    flags.add_argument("--batch_size", type=positive_int, default=DEFAULT_BATCH, help="texts encoded at once")
    flags.add_argument("--devices", nargs="+", help="one process each, such as cuda:0 cuda:1, or cpu cpu")
    add_device_flags(flags)
    args = flags.parse_args()
    if args.devices and args.device:
        raise InputError("--device and --devices both say where to encode: leave out one of both.")

    directories = [Path(path) for path in args.input]
    for directory in directories:
        require_file(directory / "item_text_dict.pkl", REMEDY)
    device = torch.device("cpu") if args.devices else pick_device(args)
    require_encoder(args.encoder)
    with contextlib.ExitStack() as stack:

        @functools.cache
        def encoding() -> Encoding:
            encoder = load_encoder(args.encoder, device)
            pool = stack.enter_context(process_pool(encoder, args.devices))
            return Encoding(encoder, args.batch_size, device, pool)

        for directory in directories:
            encode_directory(directory, args.encoder, encoding)


def encode_directory(directory: Path, name: str, encoding: Callable[[], "Encoding"]) -> None:
    """Encode the texts of one data set, unless that was done with the same texts and the encoder of that name.

    The encoder is asked for when the texts are read.
    """
    check_whole(directory / MANIFEST)
    source = directory / "item_text_dict.pkl"
    made, noted = directory / "item_text_embeddings.npy", directory / "item_text_embeddings.json"
    known, count = content(source), count_ids(directory)
    if made.is_file() and noted.is_file():
        load_matrix(made, "Delete it and run the same command again.")  # raises if it is not whole
        about = {"texts": known, "encoder": name, "rows": count, "files": {made.suffix: content(made)}}
        if about.items() <= read_json(noted).items():
            print(f"{directory}: encoded already")
            return
    texts = written_texts(load_item_texts(source), directory)
    matrix = embedding_matrix(directory, texts, count, encoding(), name)
    with matrix as about, staged_directory(directory) as staging:
        save_json(staging / noted.name, {"texts": known, **about})
    print(f"{directory}: {count} items, {count - len(texts)} of them without text")


def item_text(fields: dict[str, Any]) -> str:
    """The text of an item as the release encodes it: Python's str() of the fields without any { or }."""
    return str(fields).replace("{", "").replace("}", "")


def require_encoder(name: str) -> None:
    """InputError if a directory is named as the encoder and is not there."""
    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise InputError(f"--encoder {name} is not a directory. Name one with a sentence-transformers model.")


def load_encoder(name: str, device: torch.device | str) -> Any:
    """The SentenceTransformer of that name or directory.

    Raises:
        InputError: it cannot be fetched or loaded.
    """
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
    """An encoder and how to use it."""

    encoder: Any  # a SentenceTransformer
    batch_size: int  # texts encoded at once
    device: torch.device | str
    pool: dict[str, Any] | None = None  # processes that share the work, see `process_pool`

    def encode(self, texts: list[str]) -> np.ndarray:
        """Texts -> (n, E) float32 sentence embeddings of unit length."""
        where = {"device": str(self.device)} if self.pool is None else {"pool": self.pool}
        embeddings = self.encoder.encode(
            texts,
            batch_size=self.batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
            **where,
        )
        return np.asarray(embeddings, dtype=np.float32)


@contextlib.contextmanager
def process_pool(encoder: Any, devices: list[str] | None) -> Iterator[dict[str, Any] | None]:
    """sentence-transformers' processes, one for each device; None where no devices are named.

    They leave Ctrl-C, which a terminal sends to every process, to this one, and are ended by it.
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


def written_texts(item_texts: dict[int, dict[str, Any]], source: str | Path) -> dict[int, str]:
    """Item id -> text, of the items that have one.

    Raises:
        InputError: no item has any text.
    """
    texts = {item: item_text(fields) for item, fields in item_texts.items() if has_text(list(fields.values()))}
    if not texts:
        raise InputError(f"{source}: no item has any text; expected fields such as title. {REMEDY}")
    return texts


def count_longer(encoder: Any, texts: list[str]) -> int:
    """How many texts the encoder reads only in part, by its own tokenizer; 0 where it has no limit."""
    limit = getattr(encoder, "max_seq_length", None) or math.inf
    # A token has a byte or more, and two mark beginning and end: most texts need no look.
    long = [text for text in texts if len(text.encode(errors="surrogatepass")) + 2 > limit]
    longer = 0
    for start in range(0, len(long), CHUNK):
        tokens = encoder.tokenizer(long[start : start + CHUNK], truncation=False, verbose=False)["input_ids"]
        longer += sum(len(ids) > limit for ids in tokens)
    return longer


def digest(texts: dict[int, str]) -> str:
    """What tells whether embeddings that a killed run has left are of these texts."""
    made = hashlib.blake2b(digest_size=16)
    for item, text in texts.items():
        made.update(f"{item} {len(text)} {text}".encode(errors="surrogatepass"))
    return made.hexdigest()


@contextlib.contextmanager
def embedding_matrix(
    directory: Path, texts: dict[int, str], count: int, encoding: Encoding, encoder: str
) -> Iterator[dict[str, Any]]:
    """Encode item id -> text into DIRECTORY/item_text_embeddings.npy (count, E) float32; zero rows for other items.

    It appears under its name when the block ends without an error, in which what this gives, the contents of
    item_text_embeddings.json, is put into place; a killed run goes on where it stopped. Which texts are encoded
    together does not depend on where that was. Told: how many texts are longer than what the encoder reads.
    """
    longer = count_longer(encoding.encoder, list(texts.values()))
    if longer:
        print(
            f"{directory}: {longer} of {len(texts)} texts are longer than the {encoding.encoder.max_seq_length} tokens "
            "that the encoder reads, and are cut"
        )
    path = directory / "item_text_embeddings.npy"
    shape = (count, encoding.encoder.get_embedding_dimension())
    job = {"encoder": encoder, "text_digest": digest(texts), "batch_size": encoding.batch_size}
    with resumable_matrix(path, shape, np.float32, job) as filling:
        with tqdm(total=count, initial=filling.done, desc=f"encoding {directory}", unit=" items") as progress:
            for start in range(filling.done, count, CHUNK):
                end = min(start + CHUNK, count)
                written = [item for item in range(start, end) if item in texts]
                if written:
                    filling.matrix[written] = encoding.encode([texts[item] for item in written])
                filling.note(end)
                progress.update(end - start)
        yield {"encoder": encoder, "rows": count, "width": shape[1], "files": {path.suffix: filling.finish()}}


def save_about(staging: Path, about: dict[str, Any]) -> None:
    """Write item_text_embeddings.json, which ties the matrix to the item_text_dict.pkl in the same folder."""
    save_json(staging / "item_text_embeddings.json", {"texts": content(staging / "item_text_dict.pkl"), **about})


if __name__ == "__main__":
    run(main)
