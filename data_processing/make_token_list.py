"""Turn item embeddings into codes: four integers per item, what the model reads and predicts.

    python data_processing/make_token_list.py --embeddings data/pre_train/all_item_text_embeddings.npy \\
        --output data/pre_train/token_id_list.pkl
    python data_processing/make_token_list.py --embeddings E.npy --vae_ckpt vae_ckpt/mine.pt --output codes.pkl

Writes OUTPUT, a list of N lists of four codes in row order, and beside it OUTPUT with .json in place of .pkl: the
tokenizer's fingerprint, the number of items and the embedding width. Prints how well the codes tell items apart.
"""

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: let the repository root be found
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from ae_trainer import DEFAULT_TOKENIZER, AutoEncoder, codebook_report, describe, load_tokenizer
from utils.cli import parser, run
from utils.data import check_finite
from utils.errors import InputError
from utils.files import load_matrix, save_json, save_pickle
from utils.fsq import CODES_PER_ITEM
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

    tokenizer = load_tokenizer(args.vae_ckpt, pick_device(args))
    codes = tokenize_rows(tokenizer, load_matrix(args.embeddings, REMEDY), args.embeddings)
    save_token_list(args.output, codes, tokenizer)
    print(describe(codebook_report(codes)))


def tokenize_rows(tokenizer: AutoEncoder, embeddings: np.ndarray, source: str | Path) -> np.ndarray:
    """(N, E) float -> codes (N, K) int16, with a progress bar; only a chunk of a memory-mapped matrix is in memory.

    Raises:
        InputError: another width than the tokenizer's, or an embedding that is not finite; names the row of `source`.
    """
    codes = np.empty((len(embeddings), CODES_PER_ITEM), dtype=np.int16)
    with tqdm(total=len(embeddings), desc=f"codes of {source}", unit=" items") as progress:
        for start in range(0, len(embeddings), CHUNK):
            chunk = np.array(embeddings[start : start + CHUNK], dtype=np.float32)
            check_finite(chunk, start, str(source))  # names the row in the file; tokenize would name it in the chunk
            codes[start : start + CHUNK] = tokenizer.tokenize(chunk, str(source))
            progress.update(len(chunk))
    return codes


def save_token_list(path: str | Path, codes: np.ndarray, tokenizer: AutoEncoder) -> None:
    """Write codes (N, K) as a pickled list of lists, and beside it, as JSON, which tokenizer made them."""
    if Path(path).suffix != ".pkl":
        raise InputError(f"{path}: the codes go into a .pkl, and a .json beside it. Name a file that ends in .pkl.")
    about = {"tokenizer": tokenizer.fingerprint(), "items": len(codes), "embedding_width": tokenizer.embedding_width}
    save_pickle(path, codes.tolist())
    save_json(Path(path).with_suffix(".json"), about)


if __name__ == "__main__":
    run(main)
