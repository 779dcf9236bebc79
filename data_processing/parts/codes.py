"""From item embeddings to codes: the codes are computed by a tokenizer and written to disk."""

from itertools import chain
from pathlib import Path

import numpy as np

from ae_trainer import AutoEncoder, codebook_report, describe
from utils.files import check_whole, content, fingerprint, identity, load_matrix, save_json, staged_directory
from utils.matrices import Filling, RowCopy, copy_rows, resumable_matrix
from utils.pickles import save_dict, save_list
from utils.random_codes import RandomCodes

REMEDY = "Make it with data_processing/pre_train_data_process.py, TextEncoder_batch.py or make_dataset.py."
CHUNK = 65_536  # rows that are in memory at once


def tokenize_rows(
    tokenizer: AutoEncoder | RandomCodes, embeddings: np.ndarray, source: str | Path, filling: Filling
) -> None:
    """Write the codes (N, K) int16 of embeddings (N, E) into a matrix, with a progress bar.

    Raises:
        InputError: another width than the tokenizer's, or an embedding that is not finite; names the row of `source`.
    """
    copies = [RowCopy(str(source), embeddings)]
    copy_rows(filling, copies, CHUNK, lambda rows: tokenizer.tokenize(rows, str(source)), f"codes of {source}")


def write_token_list(output: Path, embeddings: Path, tokenizer: AutoEncoder | RandomCodes) -> np.ndarray:
    """Write the codes of a matrix (N, E) on disk as OUTPUT, a `.pkl`, with `.npy` and `.json` beside it.

    Prints how well the codes distinguish items. A killed run resumes where it stopped.

    Returns:
        The codes, (N, K) int16, memory-mapped.

    Raises:
        InputError: a damaged matrix, or what `tokenize_rows` raises.
    """
    matrix, known = load_matrix(embeddings, REMEDY), fingerprint(embeddings)
    check_whole(embeddings.with_suffix(".json"))
    job = {"embeddings": identity(embeddings), "tokenizer": tokenizer.fingerprint()}
    shape = (len(matrix), tokenizer.codebook.per_item)
    with resumable_matrix(output.with_suffix(".npy"), shape, np.int16, job) as filling:
        tokenize_rows(tokenizer, matrix, embeddings, filling)
        with staged_directory(output.parent, first=".json") as staging:
            made_from = tokenizer, known, matrix.shape[1]
            save_token_list(staging / output.name, filling.matrix, *made_from, filling.finish())
        print(describe(codebook_report(filling.matrix, codebook=tokenizer.codebook)))
    return filling.matrix


def save_token_list(
    path: Path,
    codes: np.ndarray,
    tokenizer: AutoEncoder | RandomCodes,
    embeddings: str,
    width: int,
    array: str | None = None,
    ids: np.ndarray | None = None,
) -> None:
    """Write codes (N, K) as a pickled list of lists, and beside it a JSON file that says what they were made from.

    `embeddings` is the fingerprint of the matrix, `width` wide, that the codes were made from: loading them with
    another one is an error. `array` is the fingerprint of a `.npy` with the same codes, if there is one. With `ids`
    (N,) the pickle is a dict from item id to codes.
    """
    metadata = {"tokenizer": tokenizer.fingerprint(), "items": len(codes), "embedding_width": width}
    metadata |= tokenizer.codebook.noted()
    rows = chain.from_iterable(codes[start : start + CHUNK].tolist() for start in range(0, len(codes), CHUNK))
    if ids is None:
        save_list(path, rows)
    else:
        save_dict(path, zip(ids.tolist(), rows, strict=True))
    files = {".pkl": content(path)} | ({".npy": array} if array else {})
    save_json(path.with_suffix(".json"), metadata | {"embeddings": embeddings, "files": files})
