"""Turn the item texts of one or more data sets into sentence embeddings.

    python data_processing/TextEncoder_batch.py --input data/baby
    python data_processing/TextEncoder_batch.py --input data/books data/toys --encoder ./models/all-MiniLM-L6-v2

Reads item_text_dict.pkl of each directory and writes beside it item_text_embeddings.npy (largest item id + 1, width)
float32, unit rows, zero where an item has no text, and item_text_embeddings.json (encoder, rows, width). The encoder is
any sentence-transformers model, by its name on the Hub or as a local directory; no code of a model is run.
"""

import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: let the repository root be found
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from data_processing.data_process_2 import REMEDY, count_items, load_item_texts
from utils.cli import parser, positive_int, run
from utils.errors import InputError
from utils.files import save_json, save_matrix
from utils.util import add_device_flags, pick_device

DEFAULT_ENCODER = "sentence-transformers/all-mpnet-base-v2"
DEFAULT_BATCH = 64  # texts


def main() -> None:
    """Parse, load the encoder once, encode each data set."""
    flags = parser(__doc__)
    flags.add_argument("--input", nargs="+", required=True, metavar="DIR", help="directories with item_text_dict.pkl")
    flags.add_argument("--encoder", default=DEFAULT_ENCODER, help="sentence-transformers model or local directory")
    flags.add_argument("--batch_size", type=positive_int, default=DEFAULT_BATCH, help="texts encoded at once")
    add_device_flags(flags)
    args = flags.parse_args()

    directories = [Path(path) for path in args.input]
    texts = [written_texts(load_item_texts(path / "item_text_dict.pkl"), path) for path in directories]
    device = pick_device(args)
    encoder = load_encoder(args.encoder, device)
    for directory, item_texts in zip(directories, texts, strict=True):
        embeddings = embed_items(item_texts, count_items(directory), encoder, args.batch_size, device)
        save_embeddings(directory, embeddings, args.encoder)
        print(f"{directory}: {len(embeddings)} items, {len(embeddings) - len(item_texts)} of them without text")


def item_text(fields: dict[str, Any]) -> str:
    """The text of an item as the release encodes it: Python's str() of the fields without any { or }."""
    return str(fields).replace("{", "").replace("}", "")


def load_encoder(name: str, device: torch.device | str) -> Any:
    """The SentenceTransformer of that name or directory.

    Raises:
        InputError: it cannot be fetched or loaded.
    """
    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise InputError(f"--encoder {name} is not a directory. Name one with a sentence-transformers model.")
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


def encode_texts(texts: list[str], encoder: Any, batch_size: int, device: torch.device | str) -> np.ndarray:
    """Texts -> (n, E) float32 sentence embeddings of unit length.

    Args:
        texts: n texts.
        encoder: a SentenceTransformer, or the name or directory of one.
        batch_size: texts encoded at once.
        device: where to encode.

    Raises:
        InputError: the encoder cannot be loaded.
    """
    if isinstance(encoder, str):
        encoder = load_encoder(encoder, device)
    embeddings = encoder.encode(
        texts,
        batch_size=batch_size,
        device=str(device),
        normalize_embeddings=True,
        convert_to_numpy=True,
        show_progress_bar=True,
    )
    return np.asarray(embeddings, dtype=np.float32)


def written_texts(item_texts: dict[int, dict[str, Any]], source: str | Path) -> dict[int, str]:
    """Item id -> text, of the items that have one.

    Raises:
        InputError: no item has any text.
    """
    texts = {item: item_text(fields) for item, fields in item_texts.items()}
    texts = {item: text for item, text in texts.items() if text.strip()}
    if not texts:
        raise InputError(f"{source}: no item has any text; expected fields such as title. {REMEDY}")
    return texts


def embed_items(
    texts: dict[int, str], count: int, encoder: Any, batch_size: int, device: torch.device | str
) -> np.ndarray:
    """Item id -> text, as (count, E) float32; rows of items without text are zero. See `encode_texts`."""
    encoded = encode_texts(list(texts.values()), encoder, batch_size, device)
    embeddings = np.zeros((count, encoded.shape[1]), dtype=np.float32)
    embeddings[list(texts)] = encoded
    return embeddings


def save_embeddings(directory: Path, embeddings: np.ndarray, encoder: str | None) -> None:
    """Write item_text_embeddings.npy and, beside it, where they come from (`encoder` None: not known)."""
    rows, width = embeddings.shape
    save_matrix(directory / "item_text_embeddings.npy", embeddings)
    save_json(directory / "item_text_embeddings.json", {"encoder": encoder, "rows": rows, "width": width})


if __name__ == "__main__":
    run(main)
