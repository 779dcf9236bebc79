"""Make a bundle of all that recommends from a catalog, and change its items.

    python -m serving.bundle --dataset my_shop --ckpt_path ckpt/my_shop_whole/layer_2_last.pt --output my_bundle
    python -m serving.bundle --dataset my_shop --rank_by log --items products.csv --output my_bundle
    python -m serving.bundle add my_bundle --items new.csv
    python -m serving.bundle update my_bundle --items changed.csv
    python -m serving.bundle remove my_bundle --ids B0012 B0831
    python -m serving.bundle check my_bundle

A bundle ranks by the best that the data allow, unless --rank_by says otherwise:
    blend    texts, the log and RecGPT; its weights are those of DATASET/blend.json where predict.py has fitted them
             with --exclude_history to the same files, or else are fitted now
    log      the same without RecGPT, which is not read
    model    RecGPT alone
    text     texts alone, which needs neither a log nor a model

--items gives the items further fields, such as a price, by which serving.recommend can filter (--filter "price < 20").
What the log says is counted from whole histories, with the last items, which predict.py hides to measure.
Where OUTPUT is a bundle already, the new one takes its place by one rename, and servers go over to it.
add, update and remove change all items named or none. Their files are read as import_dataset.py reads --items.
check reads all of a bundle, and says what is damaged.
"""

import argparse
import contextlib
import secrets
import shutil
import sqlite3
from pathlib import Path

from utils.cli import end_at_ctrl_c

if __name__ == "__main__":
    end_at_ctrl_c()

import numpy as np

from ae_trainer import DEFAULT_TOKENIZER
from data_processing.parts.columns import clean
from data_processing.parts.encoding import Encoding, item_text, load_encoder
from data_processing.parts.missing import has_text
from serving.bundles import HEADER, PREFIX, Bundle
from serving.item_files import add_file_flags, read_items_file
from serving.making import LOCK, RANKINGS, Making, is_own, names_of_fields, obtain_blend, put_in_place
from serving.scoring import load_parts
from serving.store import check_fields
from utils.cli import parser, run
from utils.datasets import HISTORIES, TestSet, dataset_folder, load_test, noted_encoder
from utils.errors import DiskError, InputError, reason, shown
from utils.files import check_writable, lock
from utils.names import Names, load_names
from utils.pickles import load_pickle
from utils.util import add_device_flags, pick_device
from utils.whitening import Whitening

TEXTS = "item_text_dict.pkl"
CHANGES = ("add", "update", "remove")
COMPARED, ALIKE = 16, 0.9  # texts that an encoder is tried on, and the cosine with the embeddings that are there


def main() -> None:
    """Make a bundle, or change one."""
    args = parse()
    try:
        change(args) if args.change else make(args)
    except ValueError as error:  # of a library call: here the ids and texts are the user's
        raise InputError(f"{str(error).removesuffix('.')}.") from error


def parse() -> argparse.Namespace:
    """The command line: a change, if the first word names one, or else what to make."""
    flags = parser(__doc__)
    flags.add_argument("--dataset", help="data/test/NAME, or a data set directory")
    flags.add_argument("--ckpt_path", help="model weights; not needed to rank by log or text")
    flags.add_argument("--vae_ckpt", default=DEFAULT_TOKENIZER, help="tokenizer weights")
    flags.add_argument("--encoder", help="sentence encoder of new texts; as noted beside the embeddings by default")
    flags.add_argument("--rank_by", choices=tuple(RANKINGS), help="see above; the first for which there is all")
    flags.add_argument("--output", type=Path, metavar="DIR", help="folder of the bundle")
    flags.add_argument("--items", type=Path, metavar="FILE", help="items with further fields, to filter by")
    add_file_flags(flags)
    add_device_flags(flags)
    changes = flags.add_subparsers(dest="change", metavar="add|update|remove|check")
    for name in CHANGES:
        changed = changes.add_parser(name, help=f"{name} items of a bundle", allow_abbrev=False)
        changed.add_argument("--debug", action="store_true", help="show the traceback of an error")
        changed.add_argument("bundle", type=Path, metavar="BUNDLE", help="its folder")
        items = changed.add_mutually_exclusive_group(required=True)
        items.add_argument("--items", type=Path, metavar="FILE", help="items with their fields; to remove, ids alone")
        if name == "remove":
            items.add_argument("--ids", nargs="+", metavar="ID", help="ids of the items")
        add_file_flags(changed)
    checked = changes.add_parser("check", help="say what of a bundle is damaged", allow_abbrev=False)
    checked.add_argument("--debug", action="store_true", help="show the traceback of an error")
    checked.add_argument("bundle", type=Path, metavar="BUNDLE", help="its folder")
    args = flags.parse_args()
    if args.change:
        return args
    missing = [f"--{name}" for name in ("dataset", "output") if getattr(args, name) is None]
    if missing:
        flags.error(f"{' and '.join(missing)} are missing; or name a change: add, update or remove")
    if args.rank_by in ("blend", "model") and not args.ckpt_path:
        flags.error(f"--rank_by {args.rank_by} needs --ckpt_path")
    return args


# Making one


def make(args: argparse.Namespace) -> None:
    """Load, check, fit, and write a bundle beside its place, before it is put there."""
    folder = dataset_folder(args.dataset)
    strange = [path for path in args.output.iterdir() if not is_own(path)] if args.output.is_dir() else []
    if strange:
        raise InputError(f"{strange[0]} is no file of a bundle. Name another folder, since this one is replaced.")
    test = load_test(folder, cold=False, drop_short=True)
    rank_by = args.rank_by or choose_ranking(args, test)
    if test.log is None and rank_by in ("blend", "log"):
        raise InputError(f"--rank_by {rank_by} needs the log, and {folder / HISTORIES} does not exist.")
    if not np.any(test.embeddings):
        raise InputError(f"no item of {folder} has text (all embeddings are zero). Encode the texts again.")
    names, texts = load_names(folder, len(test.embeddings)), load_pickle(folder / TEXTS, dict, "")
    check_texts(texts, folder / TEXTS)
    if args.encoder not in (None, noted_encoder(test.embeddings_path)):
        check_encoder(args.encoder, texts, test.embeddings, test.embeddings_path)
    others = {} if args.items is None else further_fields(args, names, texts)
    parts, device = None, pick_device(args)
    if rank_by in ("blend", "model"):
        parts = load_parts(args.ckpt_path, args.vae_ckpt, test.embeddings_path, test.embeddings, device)
    whitening = Whitening.of_texts(test.embeddings, source=str(test.embeddings_path))
    rows = whitening(test.embeddings, source=str(test.embeddings_path))
    blend = obtain_blend(rank_by, test, rows, parts, args.ckpt_path)

    there, said = args.output.exists(), lost(args.output, names, args.items is not None)
    check_writable(args.output / HEADER)
    version = args.output / f"{PREFIX}{secrets.token_hex(4)}"
    busy = f"{args.output}: another process is making this bundle. Wait for it, or name another folder."
    with (args.output / LOCK).open("w") as file:
        lock(file.fileno(), busy)
        try:
            version.mkdir()
            made_from = {"dataset": str(args.dataset), "ckpt_path": args.ckpt_path if parts else None}
            encoder = args.encoder or noted_encoder(test.embeddings_path)
            about = (test, names, texts, others, rows, whitening, parts, blend, rank_by, encoder, made_from)
            put_in_place(args.output, version, Making(*about))
        except BaseException as error:
            shutil.rmtree(version, ignore_errors=True)
            if not there:
                (args.output / LOCK).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    args.output.rmdir()
            if isinstance(error, (OSError, sqlite3.Error)):
                raise DiskError(f"{version} could not be written ({reason(error)}). Free some space.") from error
            raise
    for sentence in said:
        print(sentence)
    print(f"{args.output}: {len(rows)} items, ranks by {rank_by}")


def lost(output: Path, names: Names, keeps_fields: bool) -> list[str]:
    """Sentences on what a bundle that is to be replaced has and the new one will not: items, and further fields."""
    said = []
    with contextlib.suppress(InputError):
        earlier, known = Bundle.open(output), {clean(str(name)) for name in names.ids}
        gone = [item.id for _, item in earlier.store.all(earlier.store.state()) if clean(str(item.id)) not in known]
        if gone:
            first = f"{', '.join(map(str, gone[:3]))}{' …' * (len(gone) > 3)}"
            said.append(f"{len(gone)} items of the earlier bundle are not in the data set, nor in the new one: {first}")
        others = earlier.header["others"]
        if others and not keeps_fields:
            said.append(f"further fields of the earlier bundle are not in it, for want of --items: {', '.join(others)}")
    return said


def check_texts(texts: dict, path: Path) -> None:
    """InputError unless items have text fields with names, and values that JSON can hold."""
    for number, fields in texts.items():
        try:
            check_fields(fields)
        except ValueError as error:
            raise InputError(f"{path}: item {shown(number)} has odd text fields ({reason(error)}).") from error
    if not any(texts.values()):
        raise InputError(f"{path} has no text of any item. Make the data set again (import_dataset.py).")


def check_encoder(name: str, texts: dict[int, dict], embeddings: np.ndarray, source: Path) -> None:
    """InputError unless an encoder makes of some items' texts what is in the matrix (N, E) of the file `source`."""
    items = [number for number, fields in texts.items() if number < len(embeddings) and np.any(embeddings[number])]
    items = [number for number in items if has_text(list(texts[number].values()))][:COMPARED]
    if not items:
        return
    expected = np.asarray(embeddings[items], dtype=np.float64)
    found = Encoding(name, load_encoder(name, "cpu")).encode([item_text(texts[number]) for number in items])
    if found.shape != expected.shape:
        raise InputError(f"--encoder {name} is {found.shape[1]} wide, and {source} {expected.shape[1]}. Give its own.")
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    likeness = float(np.median((found * expected).sum(axis=1) / np.maximum(lengths, 1e-12)))
    if not likeness >= ALIKE:
        raise InputError(
            f"--encoder {name} did not make {source}: for the same texts, its embeddings have a cosine of "
            f"{likeness:.2f} with those there. Name the encoder that did, or leave out --encoder."
        )


def further_fields(args: argparse.Namespace, names: Names, texts: dict[int, dict]) -> dict[int, dict]:
    """What --items knows of the items of a data set beside their texts, by number."""
    numbers = {clean(str(name)): number for number, name in enumerate(names.ids)}
    read = read_items_file(args, without=names_of_fields(texts))
    if not read:
        print(f"{args.items} has no columns beside the ids and the texts: no further fields")
        return {}
    found = {numbers[item]: fields for item, fields in read if item in numbers}
    if not found:
        raise InputError(f"{args.items} has no item of {args.dataset}. Give the file that the data set was made of.")
    print(
        f"{args.items}: further fields of {len(found)} of {len(names.ids)} items: {', '.join(names_of_fields(found))}"
    )
    return found


def choose_ranking(args: argparse.Namespace, test: TestSet) -> str:
    """The best ranking that the data allow."""
    if test.log is None:
        return "model" if args.ckpt_path else "text"
    return "blend" if args.ckpt_path else "log"


# Changing one


def change(args: argparse.Namespace) -> None:
    """Add, update or remove items."""
    bundle = Bundle.open(args.bundle)
    if args.change == "check":
        print(f"{args.bundle}: {bundle.store.check()} items, and all of the bundle is whole")
        return
    if args.change == "remove":
        count, done = bundle.remove(args.ids or [item for item, _ in read_items_file(args, [])]), "removed"
    else:
        read = read_items_file(args, bundle.known, empty=args.change == "update")
        items = [(bundle.own_form(item), fields) for item, fields in read]
        count, done = (bundle.add(items), "added") if args.change == "add" else (bundle.update(items), "updated")
        emptied = sum(value is None for _, fields in items for value in fields.values())
        done += f"; {emptied} fields were emptied, as the cells of the file are" if emptied else ""
    print(f"{args.bundle}: {count} item{'s' * (count != 1)} {done}")
    if args.change == "add" and bundle.log is not None:
        print("  The log knows nothing of new items, so they seldom come up: see docs/serving.md, New items.")


if __name__ == "__main__":
    run(main)
