"""Turn item embeddings into codes: four integers per item, what the model reads and predicts.

    python data_processing/make_token_list.py --embeddings data/pre_train/all_item_text_embeddings.npy \\
        --output data/pre_train/token_id_list.pkl
    python data_processing/make_token_list.py --embeddings E.npy --vae_ckpt vae_ckpt/mine.pt --output codes.pkl

Writes OUTPUT, a list of N lists of four codes in row order; beside it, with .npy in place of .pkl, the same codes as an
array (N, 4) int16, and with .json the fingerprints of tokenizer and embeddings, the number of items and the embedding
width. Prints how well the codes tell items apart. Only a chunk of the embeddings is in memory; a run that was killed
goes on where it stopped.
"""

import sys
from itertools import chain
from pathlib import Path

if __package__ in (None, ""):  # run as a file: let the repository root be found
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import numpy as np
from tqdm import tqdm

from ae_trainer import DEFAULT_TOKENIZER, AutoEncoder, codebook_report, describe, load_tokenizer
from utils.cli import parser, run
from utils.data import check_finite
from utils.errors import InputError
from utils.files import (
    check_whole,
    content,
    fingerprint,
    forget_pages,
    identity,
    load_matrix,
    save_json,
    staged_directory,
)
from utils.fsq import CODES_PER_ITEM
from utils.matrices import Filling, resumable_matrix
from utils.pickles import save_list
from utils.util import add_device_flags, pick_device

CHUNK = 65_536  # rows between two steps of the progress bar
REMEDY = "Make it with data_processing/pre_train_data_process.py, TextEncoder_batch.py or make_dataset.py."


def main() -> None:
    """Parse, tokenize, write, report."""
    flags = parser(__doc__)
    flags.add_argument("--embeddings", required=True, metavar="FILE", help=".npy matrix (items, width)")
    flags.add_argument("--vae_ckpt", default=DEFAULT_TOKENIZER, help="tokenizer weights")
    flags.add_argument("--output", required=True, metavar="FILE", help="list of codes to write, .pkl")
    add_device_flags(flags)
    args = flags.parse_args()

    output, source = check_name(args.output), Path(args.embeddings)
    replaced = output.with_suffix(".npy")
    if replaced.is_file() and source.is_file() and replaced.samefile(source):
        raise InputError(f"--output {output}: its .npy would replace --embeddings {args.embeddings}. Name another.")
    tokenizer = load_tokenizer(args.vae_ckpt, pick_device(args))
    embeddings, known = load_matrix(args.embeddings, REMEDY), fingerprint(args.embeddings)
    check_whole(Path(args.embeddings).with_suffix(".json"))
    job = {"embeddings": identity(args.embeddings), "tokenizer": tokenizer.fingerprint()}
    shape = (len(embeddings), CODES_PER_ITEM)
    with resumable_matrix(output.with_suffix(".npy"), shape, np.int16, job) as filling:
        tokenize_rows(tokenizer, embeddings, args.embeddings, filling)
        with staged_directory(output.parent, first=".json") as staging:
            save_token_list(staging / output.name, filling.matrix, tokenizer, known, filling.finish())
        print(describe(codebook_report(filling.matrix)))


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


def check_name(path: str | Path) -> Path:
    """InputError unless the codes are to go into a .pkl: files of that name with other endings come beside it."""
    if Path(path).suffix != ".pkl":
        raise InputError(f"{path}: the codes go into a .pkl, and a .json beside it. Name a file that ends in .pkl.")
    return Path(path)


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
    about = {"tokenizer": tokenizer.fingerprint(), "items": len(codes), "embedding_width": tokenizer.embedding_width}
    save_list(path, chain.from_iterable(codes[start : start + CHUNK].tolist() for start in range(0, len(codes), CHUNK)))
    files = {".pkl": content(path)} | ({".npy": array} if array else {})
    save_json(path.with_suffix(".json"), about | {"embeddings": embeddings, "files": files})


if __name__ == "__main__":
    run(main)
