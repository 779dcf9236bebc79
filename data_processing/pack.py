"""Put pre-training data into the packed form, which opens at once whatever its size.

    python data_processing/pack.py --data_path data/pre_train
    python data_processing/pack.py --data_path data/pre_train --dtype float16

Reads train.pkl, token_id_list.pkl and all_item_text_embeddings.npy, the release's or those of data_process_2.py,
make_token_list.py and pre_train_data_process.py, checks them, and writes DATA_PATH/packed (see utils/packed.py).
pre_train.py does this by itself where there is no packed form of the files as they are now. --dtype gives the packed
form embeddings of its own, which in float16 take a quarter of the release's 95 GB. A packed form that is up to date is
kept.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

from utils.cli import parser, run
from utils.packed import is_current, open_packed, pack


def main() -> None:
    """Pack, open what was packed, and print its counts."""
    flags = parser(__doc__)
    flags.add_argument("--data_path", default="./data/pre_train", metavar="DIR", help="release layout")
    flags.add_argument("--dtype", choices=("float16", "float32"), help="of embeddings of its own; default: none")
    flags.add_argument("--drop_short", action="store_true", help="leave out histories of fewer than two items")
    flags.add_argument("--force", action="store_true", help="pack again even where the packed form is up to date")
    args = flags.parse_args()
    if args.force or not is_current(args.data_path, args.drop_short, args.dtype):
        pack(args.data_path, args.dtype, args.drop_short)
    data, header = open_packed(args.data_path)
    print(
        f"{Path(args.data_path) / 'packed'}: {header['histories']} histories, {header['interactions']} interactions, "
        f"{header['items']} items, embeddings {header['embeddings']} {data.catalog.embeddings.dtype}"
    )


if __name__ == "__main__":
    run(main)
