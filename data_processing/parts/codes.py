"""From item embeddings to codes: the codes are computed by a tokenizer and written to disk."""

from itertools import chain
from pathlib import Path

import numpy as np

from ae_trainer import AutoEncoder
from utils.files import content, save_json
from utils.matrices import Filling, RowCopy, copy_rows
from utils.pickles import save_list

CHUNK = 65_536  # rows that are in memory at once


def tokenize_rows(tokenizer: AutoEncoder, embeddings: np.ndarray, source: str | Path, filling: Filling) -> None:
    """Write the codes (N, K) int16 of embeddings (N, E) into a matrix, with a progress bar.

    Raises:
        InputError: another width than the tokenizer's, or an embedding that is not finite; names the row of `source`.
    """
    copies = [RowCopy(str(source), embeddings)]
    copy_rows(filling, copies, CHUNK, lambda rows: tokenizer.tokenize(rows, str(source)), f"codes of {source}")


def save_token_list(
    path: Path, codes: np.ndarray, tokenizer: AutoEncoder, embeddings: str, array: str | None = None
) -> None:
    """Write codes (N, K) as a pickled list of lists, and beside it a JSON file that says what they were made from.

    `embeddings` is the fingerprint of the matrix that the codes were made from: loading them with another one is an
    error. `array` is the fingerprint of a `.npy` with the same codes, if there is one.
    """
    metadata = {"tokenizer": tokenizer.fingerprint(), "items": len(codes), "embedding_width": tokenizer.embedding_width}
    save_list(path, chain.from_iterable(codes[start : start + CHUNK].tolist() for start in range(0, len(codes), CHUNK)))
    files = {".pkl": content(path)} | ({".npy": array} if array else {})
    save_json(path.with_suffix(".json"), metadata | {"embeddings": embeddings, "files": files})
