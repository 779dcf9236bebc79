"""Make the training data of one or more data sets, and what they are validated on, in one command.

    python data_processing/make_pre_train.py --datasets data/test/my_shop --output data/my_shop
    python data_processing/make_pre_train.py --datasets data/books data/toys --output data/two
    python data_processing/make_pre_train.py --datasets data/test/my_shop --share 0.1 --seed 1 \\
        --vae_ckpt vae_ckpt/mine.pt --output data/tenth

Reads train.pkl and item_text_embeddings.npy of each data set. The last item of each list of train.pkl is a target of
validation, and training must not see it. OUTPUT/train.pkl has the lists without their last item; lists that then have
fewer than two items are left out. OUTPUT/eval has whole lists in the form that eval.py and pre_train.py --eval_path
read; its dataset.json says that only their last items are targets. Item ids are merged as in data_process_2.py: those
of a single data set stay as they are. The other files of OUTPUT are those of data_process_2.py,
pre_train_data_process.py and make_token_list.py. OUTPUT/whole has whole lists, to train on once validation has chosen
the number of steps (pre_train.py --refit_of); its other files are links to those of OUTPUT. test.pkl is not read; it is
only held against the hash that a data set's dataset.json notes.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import argparse
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from ae_trainer import DEFAULT_TOKENIZER, AutoEncoder, load_tokenizer
from data_processing.parts import merging
from data_processing.parts.codes import save_token_list, write_token_list
from utils.cli import parser, positive_int, run, seed, share
from utils.data import Sequences
from utils.datasets import CODES, HELD_OUT, HISTORIES, LAST, SEEN
from utils.files import content, fingerprint, load_matrix, save_json, save_matrix, staged_set
from utils.pickles import save_pickle
from utils.util import add_device_flags, pick_device

EMPTY = "no list of train.pkl has three items, two to train on and one to validate with (--test_share 1 leaves none)."


def parse() -> argparse.Namespace:
    """The command line."""
    flags = parser(__doc__)
    flags.add_argument("--datasets", nargs="+", required=True, metavar="DIR", help="data set directories")
    flags.add_argument("--vae_ckpt", default=DEFAULT_TOKENIZER, help="tokenizer weights")
    flags.add_argument("--output", required=True, metavar="DIR", help="directory to write to")
    drawn = flags.add_mutually_exclusive_group()
    drawn.add_argument("--users", type=positive_int, help="at most so many users of each data set, drawn at random")
    drawn.add_argument("--share", type=share, help="this part of the users of each data set, drawn at random")
    meaning = "at most so many users to validate on, equally many of each data set"
    flags.add_argument("--eval_users", type=positive_int, default=5000, help=meaning)
    flags.add_argument("--seed", type=seed, default=0, help="of the draws")
    flags.add_argument("--dtype", choices=("float32", "float16", "float64"), default="float32", help="of embeddings")
    add_device_flags(flags)
    return flags.parse_args()


def main() -> None:
    """Check what is there; write histories, embeddings, codes, and the validation set."""
    args = parse()
    output = Path(args.output)
    directories = merging.named_directories(args.datasets)
    merging.check_histories_exist(directories, output)
    matrices, encoder = merging.load_embeddings(directories.values())
    maps = merging.id_maps({name: len(matrix) for name, matrix in zip(directories, matrices.values(), strict=True)})
    tokenizer = load_tokenizer(args.vae_ckpt, pick_device(args))
    matrices = {path: tokenizer.prepare(matrix, str(path)) for path, matrix in matrices.items()}
    encoder = tokenizer.prepared_encoder(encoder)

    split = Split(args.users, args.share, max(1, args.eval_users // len(directories)), args.seed)
    training = split.training_lists(directories, maps)
    for earlier in (output / "eval" / HELD_OUT[0], output / "whole" / HISTORIES):  # must not stand beside new lists
        earlier.unlink(missing_ok=True)
    counts = merging.write_histories(output, directories, training, maps, EMPTY)
    print(
        f"{output}: {counts['users']} users, {counts['interactions']} interactions, {sum(map(len, maps.values()))} "
        f"items; {split.short} users with fewer than three items are left out"
    )
    embeddings = merging.write_embeddings(output, directories, matrices, encoder, maps, args.dtype)
    codes = write_token_list(output / CODES, embeddings, tokenizer)
    write_eval(output / "eval", split.held_out, load_matrix(embeddings, ""), codes, tokenizer, encoder)
    (output / "whole").mkdir(exist_ok=True)
    for path in (embeddings, output / CODES):
        for made in path.parent.glob(f"{path.stem}.*"):
            link(made, output / "whole" / made.name)
    seen = {SEEN: content(output / "eval" / HELD_OUT[0]), **merging.note_whole_lists(directories)}
    merging.write_histories(output / "whole", directories, split.whole_lists(directories, maps), maps, EMPTY, **seen)


@dataclass
class Split:
    """Which users are drawn, and what of their lists is for training and what for validation."""

    users: int | None  # at most so many of each data set
    share: float | None  # or this part of them
    eval_users: int  # at most so many of each data set are for validation
    seed: int
    short: int = 0  # drawn users whose lists are too short for training, of the data sets read so far
    held_out: list[list[int]] = field(default_factory=list)  # validation lists with merged ids, of the same

    def whole_lists(self, directories: dict[str, Path], maps: dict[str, np.ndarray]) -> Iterator[Sequences]:
        """Yield the lists of train.pkl of two or more items of each data set's drawn users."""
        for name, directory in directories.items():
            histories = merging.load_histories(directory / HISTORIES, len(maps[name]))
            users = self.users if self.share is None else max(1, round(self.share * len(histories)))
            histories = merging.draw_users(histories, users, self.seed)
            kept = np.flatnonzero(histories.lengths >= 2)
            self.short += len(histories) - len(kept)
            yield histories.select(kept)

    def training_lists(self, directories: dict[str, Path], maps: dict[str, np.ndarray]) -> Iterator[Sequences]:
        """Yield what there is to train on of each data set: lists of two or more items, without the last of train.pkl.

        Raises what `merging.load_histories` raises.
        """
        for name, histories in zip(directories, self.whole_lists(directories, maps), strict=True):
            validated = merging.draw_users(histories, self.eval_users, self.seed)
            self.held_out += replace(validated, items=maps[name][validated.items]).lists()
            seen, _ = histories.split_targets()
            kept = np.flatnonzero(seen.lengths >= 2)
            self.short += len(seen) - len(kept)
            yield seen.select(kept)


def link(path: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no such links."""
    target.unlink(missing_ok=True)
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def write_eval(
    folder: Path,
    lists: list[list[int]],
    embeddings: np.ndarray,
    codes: np.ndarray,
    tokenizer: AutoEncoder,
    encoder: str | None,
) -> None:
    """Write validation lists as `load_eval` reads them, with embeddings (N, E) and codes (N, K) of their items only."""
    items = np.unique(np.concatenate(lists))  # (n,) item ids
    *listed, matrix_name = HELD_OUT
    with staged_set(folder, listed, targets=LAST) as staging:
        save_pickle(staging / "eval.pkl", dict(enumerate(lists)))
        save_pickle(staging / "eval_id_map.pkl", {item: row for row, item in enumerate(items.tolist())})
        save_matrix(staging / matrix_name, embeddings[items])
        made = fingerprint(staging / matrix_name)
        width = embeddings.shape[1]
        save_token_list(staging / "token_id_list_eval.pkl", codes[items], tokenizer, made, width, ids=items)
        metadata = {"encoder": encoder, "rows": len(items), "width": width, "files": {".npy": made}}
        save_json((staging / matrix_name).with_suffix(".json"), metadata)
    print(f"{folder}: {len(lists)} users, of each the last item is the target; {len(items)} items")


if __name__ == "__main__":
    run(main)
