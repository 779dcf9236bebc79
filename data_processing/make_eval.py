"""Put data sets that take no part in pre-training into the form eval.py reads, to choose among checkpoints.

    python data_processing/make_eval.py --datasets data/office data/food --output data/eval
    python data_processing/make_eval.py --datasets data/food --users 5000 --seed 0 --output data/eval

Reads train.pkl, test.pkl and item_text_embeddings.npy of each data set (all users, or --users of each at random; a user
whose list in test.pkl continues that in train.pkl is read once, from test.pkl) and writes to OUTPUT eval.pkl
(dict user -> item ids), token_id_list_eval.pkl (codes by item id, with the tokenizer's fingerprint in
token_id_list_eval.json), eval_id_map.pkl (dict item id -> row of the embeddings), all_item_text_embeddings_eval.npy
(N, E) and .json, and dataset.json, which lists them with hashes.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import numpy as np

from ae_trainer import DEFAULT_TOKENIZER, codebook_report, describe, load_tokenizer
from data_processing.parts import merging
from data_processing.parts.codes import save_token_list
from utils.cli import parser, positive_int, run, seed
from utils.data import Sequences, cumulate
from utils.datasets import HELD_OUT
from utils.errors import InputError
from utils.files import save_json, staged_set
from utils.pickles import save_pickle
from utils.util import add_device_flags, pick_device


def main() -> None:
    """Read and check everything, tokenize the items, and write."""
    flags = parser(__doc__)
    flags.add_argument("--datasets", nargs="+", required=True, metavar="DIR", help="data set directories")
    flags.add_argument("--vae_ckpt", default=DEFAULT_TOKENIZER, help="tokenizer weights")
    flags.add_argument("--output", default="./data/eval", metavar="DIR", help="directory to write to")
    flags.add_argument("--users", type=positive_int, help="at most so many users of each data set, drawn at random")
    flags.add_argument("--seed", type=seed, default=0, help="of the draw")
    add_device_flags(flags)
    args = flags.parse_args()

    directories = merging.named_directories(args.datasets).values()
    matrices, encoder = merging.load_embeddings(directories)
    maps = list(merging.id_maps({path: len(matrix) for path, matrix in matrices.items()}).values())
    histories = [
        merging.draw_users(all_histories(directory, len(id_map)), args.users, args.seed)
        for directory, id_map in zip(directories, maps, strict=True)
    ]
    if not any(map(len, histories)):
        raise InputError(f"--datasets {' '.join(args.datasets)}: no train.pkl or test.pkl has a user. {merging.REMEDY}")
    tokenizer = load_tokenizer(args.vae_ckpt, pick_device(args))
    matrices = {path: tokenizer.prepare(matrix, str(path)) for path, matrix in matrices.items()}
    encoder = tokenizer.prepared_encoder(encoder)
    codes = np.concatenate([tokenizer.tokenize(matrix, str(path)) for path, matrix in matrices.items()])

    output = Path(args.output)
    merged = dict(enumerate(merging.merge_histories(histories, maps)))
    *listed, matrix_name = HELD_OUT
    with (
        merging.merged_embeddings(output / matrix_name, matrices, maps, "float32") as made,
        staged_set(output, listed) as staging,
    ):
        save_pickle(staging / "eval.pkl", merged)
        save_pickle(staging / "eval_id_map.pkl", {item: item for item in range(len(codes))})
        width = next(iter(matrices.values())).shape[1]
        save_token_list(staging / "token_id_list_eval.pkl", codes, tokenizer, made, width)
        metadata = {"encoder": encoder, "rows": len(codes), "width": width, "files": {".npy": made}}
        save_json((staging / matrix_name).with_suffix(".json"), metadata)
    print(
        f"{output}: {len(merged)} users, {sum(map(len, merged.values()))} interactions, "
        f"{describe(codebook_report(codes, codebook=tokenizer.codebook))}"
    )


def all_histories(directory: Path, count: int) -> Sequences:
    """Load the histories of a data set's train.pkl and test.pkl, each user's once.

    A list in train.pkl is left out if the same user's list in test.pkl begins with it, as after a split in time. If
    the two lists differ, each file has numbered its users for itself, and both lists are kept.

    Raises:
        InputError: neither file exists, a file is damaged, or an item id is `count` or more.
    """
    paths = [path for path in (directory / "train.pkl", directory / "test.pkl") if path.is_file()]
    if not paths:
        raise InputError(f"{directory} has neither train.pkl nor test.pkl. {merging.REMEDY}")
    parts = [merging.load_histories(path, count) for path in paths]
    if len(parts) == 2:
        parts[0] = merging.unlike_test(directory, *parts)
    lengths = np.concatenate([part.lengths for part in parts])
    return Sequences(None, np.concatenate([part.items for part in parts]), cumulate(lengths))


if __name__ == "__main__":
    run(main)
