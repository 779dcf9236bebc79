"""Turn item embeddings into codes: four integers per item, what the model reads and predicts.

    python data_processing/make_token_list.py --embeddings data/pre_train/all_item_text_embeddings.npy \\
        --output data/pre_train/token_id_list.pkl
    python data_processing/make_token_list.py --embeddings E.npy --vae_ckpt vae_ckpt/mine.pt --output codes.pkl
    python data_processing/make_token_list.py --embeddings E.npy --random 0 --output codes.pkl

Writes OUTPUT, a list of N lists of K codes in row order; beside it, with .npy in place of .pkl, the same codes as an
array (N, K) int16, and with .json the fingerprints of tokenizer and embeddings, the number of items and the embedding
width. Prints how well the codes distinguish items. Only a chunk of the embeddings is in memory; a run that was killed
resumes where it stopped.

--random draws the codes of each text at random, to learn what their meaning is worth. Whatever asks for --vae_ckpt
makes the same codes for the same texts when it is given random:SEED.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

from ae_trainer import DEFAULT_TOKENIZER, load_tokenizer
from data_processing.parts.codes import write_token_list
from utils.cli import parser, run, seed
from utils.datasets import is_whitened
from utils.errors import InputError
from utils.util import add_device_flags, pick_device


def main() -> None:
    """Tokenize the embeddings, write the codes, and print how well they distinguish items."""
    flags = parser(__doc__)
    flags.add_argument("--embeddings", required=True, metavar="FILE", help=".npy matrix (items, width)")
    codes = flags.add_mutually_exclusive_group()
    codes.add_argument("--vae_ckpt", default=DEFAULT_TOKENIZER, help="tokenizer weights")
    codes.add_argument(
        "--random", type=seed, metavar="SEED", help="draw the codes at random, as --vae_ckpt random:SEED"
    )
    flags.add_argument("--output", required=True, metavar="FILE", help="list of codes to write, .pkl")
    add_device_flags(flags)
    args = flags.parse_args()

    output, source = Path(args.output), Path(args.embeddings)
    if output.suffix != ".pkl":
        raise InputError(f"{output}: the codes go into a .pkl, and a .json beside it. Name a file that ends in .pkl.")
    replaced = output.with_suffix(".npy")
    if replaced.is_file() and source.is_file() and replaced.samefile(source):
        raise InputError(f"--output {output}: its .npy would replace --embeddings {args.embeddings}. Name another.")
    tokenizer = load_tokenizer(args.vae_ckpt if args.random is None else f"random:{args.random}", pick_device(args))
    if tokenizer.whitens != is_whitened(source):
        raise InputError(
            f"{args.vae_ckpt} {'whitens' if tokenizer.whitens else 'does not whiten'} embeddings, and {source} has "
            f"{'plain' if tokenizer.whitens else 'whitened'} ones. Use make_pre_train.py, which prepares those of each "
            "data set as the tokenizer needs them, or another tokenizer."
        )
    write_token_list(output, source, tokenizer)


if __name__ == "__main__":
    run(main)
