"""Item embeddings to codes, on disk."""

from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ae_trainer import AutoEncoder
from utils.data import check_finite
from utils.files import content, forget_pages, save_json
from utils.matrices import Filling
from utils.pickles import save_list

CHUNK = 65_536  # rows between two steps of the progress bar


def tokenize_rows(tokenizer: AutoEncoder, embeddings: np.ndarray, source: str | Path, filling: Filling) -> None:
    """(N, E) float -> codes (N, K) int16 in a matrix to fill, with a progress bar.

    Raises:
        InputError: another width than the tokenizer's, or an embedding that is not finite; names the row of `source`.
    """
    total, done = len(embeddings), filling.done
    with tqdm(total=total, initial=done, desc=f"codes of {source}", unit=" items") as progress:
        for start in range(done, total, CHUNK):
            with np.errstate(over="ignore"):
                chunk = np.array(embeddings[start : start + CHUNK], dtype=np.float32)
            check_finite(chunk, start, str(source))  # names the row in the file; tokenize would name it in the chunk
            filling.matrix[start : start + CHUNK] = tokenizer.tokenize(chunk, str(source))
            forget_pages(embeddings)
            filling.note(start + len(chunk))
            progress.update(len(chunk))


def save_token_list(
    path: Path, codes: np.ndarray, tokenizer: AutoEncoder, embeddings: str, array: str | None = None
) -> None:
    """Write codes (N, K) as a pickled list of lists, and beside it, as JSON, which tokenizer made them of what.

    Args:
        path: of the pickle.
        codes: (N, K) integers.
        tokenizer: that made them.
        embeddings: fingerprint of the matrix that the codes must not be used without.
        array: fingerprint of the same codes as a `.npy`, where there is one.
    """
    metadata = {"tokenizer": tokenizer.fingerprint(), "items": len(codes), "embedding_width": tokenizer.embedding_width}
    save_list(path, chain.from_iterable(codes[start : start + CHUNK].tolist() for start in range(0, len(codes), CHUNK)))
    files = {".pkl": content(path)} | ({".npy": array} if array else {})
    save_json(path.with_suffix(".json"), metadata | {"embeddings": embeddings, "files": files})
