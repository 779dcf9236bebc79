"""Turn the item texts of one or more data sets into sentence embeddings.

    python data_processing/TextEncoder_batch.py --input data/baby
    python data_processing/TextEncoder_batch.py --input data/books data/toys --encoder ./models/all-MiniLM-L6-v2

Reads item_text_dict.pkl of each directory and writes beside it item_text_embeddings.npy (largest item id + 1, width)
float32, unit rows, zero where an item has no text, and item_text_embeddings.json (encoder, rows, width). The encoder is
any sentence-transformers model, by its name on the Hub, as a local directory, or as package:NAME, an installed package
that holds one; code that comes with a model is not run. Equal texts are encoded once. Prints how many texts are longer
than what the encoder reads. A run that was killed resumes where it stopped.
"""

import contextlib
import functools
import sys
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import torch

from data_processing.parts import encoding
from data_processing.parts.merging import REMEDY, count_ids, load_item_texts
from utils.cli import parser, positive_int, run
from utils.errors import InputError
from utils.files import (
    MANIFEST,
    check_whole,
    content,
    load_matrix,
    read_json,
    require_file,
    save_json,
    staged_directory,
)
from utils.util import add_device_flags, pick_device


def main() -> None:
    """Encode the texts of each data set; the encoder is loaded once, and only if a data set needs it."""
    flags = parser(__doc__)
    flags.add_argument("--input", nargs="+", required=True, metavar="DIR", help="directories with item_text_dict.pkl")
    flags.add_argument("--encoder", default=encoding.DEFAULT_ENCODER, help=encoding.ENCODER_HELP)
    flags.add_argument("--batch_size", type=positive_int, help=encoding.BATCH_HELP)
    encoding.add_precision_flag(flags)
    flags.add_argument("--devices", nargs="+", help="one process each, such as cuda:0 cuda:1, or cpu cpu")
    add_device_flags(flags)
    args = flags.parse_args()
    if args.devices and args.device:
        raise InputError("--device and --devices both say where to encode: leave out one of both.")
    name = encoding.noted_name(args)
    if args.devices and name.endswith(encoding.ROUNDED):
        raise InputError("--encoder_precision bfloat16 does not reach the processes of --devices: leave out one.")

    directories = [Path(path) for path in args.input]
    for directory in directories:
        require_file(directory / "item_text_dict.pkl", REMEDY)
    device = torch.device("cpu") if args.devices else pick_device(args)
    encoding.require_encoder(name)
    with contextlib.ExitStack() as stack:

        @functools.cache
        def load() -> encoding.Encoding:
            encoder = encoding.load_encoder(name, device)
            pool = stack.enter_context(encoding.process_pool(encoder, args.devices))
            return encoding.Encoding(name, encoder, args.batch_size, pool)

        for directory in directories:
            encode_directory(directory, name, load)


def encode_directory(directory: Path, name: str, load: Callable[[], encoding.Encoding]) -> None:
    """Encode the texts of one data set, unless that was done with the same texts and the encoder of that name.

    `load` loads the encoder; it is called after the texts are read.
    """
    check_whole(directory / MANIFEST)
    source = directory / "item_text_dict.pkl"
    embeddings, json_path = directory / "item_text_embeddings.npy", directory / "item_text_embeddings.json"
    texts_hash, count = content(source), count_ids(directory)
    if embeddings.is_file() and json_path.is_file():
        load_matrix(embeddings, "Delete it and run the same command again.")  # raises if it is not whole
        files = {embeddings.suffix: content(embeddings)}
        expected = {"texts": texts_hash, "encoder": name, "rows": count, "files": files}
        if expected.items() <= read_json(json_path).items():
            print(f"{directory}: encoded already")
            return
    texts = encoding.texts_to_encode(load_item_texts(source), directory)
    matrix = encoding.encoded_embeddings(directory, texts, count, load())
    with matrix as metadata, staged_directory(directory) as staging:
        save_json(staging / json_path.name, {"texts": texts_hash, **metadata})
    print(f"{directory}: {count} items, {count - len(texts)} of them without text")


if __name__ == "__main__":
    run(main)
