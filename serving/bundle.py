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
import json
import re
import secrets
import shutil
import sqlite3
from functools import partial
from pathlib import Path
from typing import NamedTuple

from utils.cli import end_at_ctrl_c

if __name__ == "__main__":
    end_at_ctrl_c()

import numpy as np

from ae_trainer import DEFAULT_TOKENIZER
from data_processing.parts.columns import clean
from serving.bundles import ARRAYS, HEADER, PREFIX, VERSION, Bundle, check_header, read_header, save_whitening
from serving.item_files import add_file_flags, read_items_file
from serving.log import save_log
from serving.scoring import Parts, blend_origin, load_fitted_with, load_parts, scores_of_all
from serving.store import FILE, Item, ItemStore, check_id
from utils.blend import NO_LOG, WITH_LOG, WITH_NETWORK, Domain, Fitted, fit_to_log
from utils.blend_files import SHIPPED, load_blends, origin_of_fit, save_blends
from utils.cli import parser, run
from utils.data import Sequences
from utils.datasets import HISTORIES, TestSet, dataset_folder, load_test, noted_encoder
from utils.errors import DiskError, InputError, reason, shown
from utils.files import check_writable, fingerprint, lock, save_json
from utils.names import Names, load_names
from utils.pickles import load_pickle
from utils.scores import Statistics
from utils.util import add_device_flags, pick_device
from utils.whitening import Whitening, are_whitened

RANKINGS = {"blend": WITH_NETWORK, "log": WITH_LOG, "model": None, "text": NO_LOG}  # name -> blend
USERS = 96  # in a batch of the fit
TEXTS = "item_text_dict.pkl"
CHANGES = ("add", "update", "remove")
OWN = re.compile(rf"{PREFIX}[0-9a-f]{{8}}|\.{re.escape(HEADER)}\..*\.partial")  # that a killed command may leave
WITHIN = (
    "whitening.npz",
    "prepared.npz",
    "model",
    "tokenizer",
    "blend.json",
    "log",
    *(f"{name}.bin" for name in ARRAYS),
)
LOCK = ".lock"  # of who makes a bundle in a folder


def main() -> None:
    """Make a bundle, or change one."""
    args = parse()
    try:
        change(args) if args.change else make(args)
    except ValueError as error:  # of a library call: here the ids and texts are the user's
        raise InputError(f"{error}.") from error


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


class Making(NamedTuple):
    """What a bundle is made of."""

    test: TestSet
    names: Names  # of its items
    texts: dict[int, dict]  # their text fields
    others: dict[int, dict]  # their further fields
    rows: np.ndarray  # (N, E) float32, embeddings, whitened
    whitening: Whitening
    parts: Parts | None  # of a bundle with a model
    blend: dict[str, Fitted]  # none for the model alone
    rank_by: str


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
    others = {} if args.items is None else further_fields(args, names, texts)
    parts, device = None, pick_device(args)
    if rank_by in ("blend", "model"):
        parts = load_parts(args.ckpt_path, args.vae_ckpt, test.embeddings_path, test.embeddings, device)
    whitening = Whitening.of_texts(test.embeddings, source=str(test.embeddings_path))
    rows = whitening(test.embeddings, source=str(test.embeddings_path))
    blend = obtain_blend(args, rank_by, test, rows, parts)

    there, earlier = args.output.exists(), earlier_fields(args.output)
    check_writable(args.output / HEADER)
    version = args.output / f"{PREFIX}{secrets.token_hex(4)}"
    busy = f"{args.output}: another process is making this bundle. Wait for it, or name another folder."
    with (args.output / LOCK).open("w") as file:
        lock(file.fileno(), busy)
        try:
            version.mkdir()
            put_in_place(args, version, Making(test, names, texts, others, rows, whitening, parts, blend, rank_by))
        except BaseException as error:
            shutil.rmtree(version, ignore_errors=True)
            if not there:
                (args.output / LOCK).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    args.output.rmdir()
            if isinstance(error, (OSError, sqlite3.Error)):
                raise DiskError(f"{version} could not be written ({reason(error)}). Free some space.") from error
            raise
    lost = [] if args.items else earlier
    if lost:
        print(f"further fields of the earlier bundle are not in it, for want of --items: {', '.join(lost)}")
    print(f"{args.output}: {len(rows)} items, ranks by {rank_by}")


def earlier_fields(output: Path) -> list[str]:
    """Names of the further fields of a bundle that is replaced."""
    with contextlib.suppress(InputError):
        return read_header(output / HEADER)["others"]
    return []


def is_own(path: Path) -> bool:
    """Whether a file or folder is a bundle's, so that it may be replaced or removed."""
    if path.is_symlink():
        return False
    if path.name == HEADER:
        try:
            read_header(path)
        except InputError:
            return False
        return True
    if path.is_dir():
        own = all(entry.name in WITHIN or entry.name.startswith((FILE, LOCK)) for entry in path.iterdir())
        return own and bool(OWN.fullmatch(path.name))
    return path.name == LOCK or bool(OWN.fullmatch(path.name))


def check_texts(texts: dict, path: Path) -> None:
    """InputError unless items have text fields with names, and values that JSON can hold."""
    for number, fields in texts.items():
        try:
            if not all(type(name) is str for name in fields):
                raise TypeError("the name of a field is no text")
            json.dumps(fields)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: item {shown(number)} has odd text fields ({reason(error)}).") from error
    if not any(texts.values()):
        raise InputError(f"{path} has no text of any item. Make the data set again (import_dataset.py).")


def names_of_fields(fields: dict[int, dict]) -> list[str]:
    """The names of the fields of all items, in the order in which they come up."""
    return list(dict.fromkeys(name for one in fields.values() for name in one))


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


def put_in_place(args: argparse.Namespace, version: Path, making: Making) -> None:
    """Write into the empty folder `version`, let bundle.json name it, and remove what is there of earlier ones."""
    test, parts = making.test, making.parts
    write(version, making)
    files = sorted(path for path in version.rglob("*") if path.is_file() and path.suffix not in (".bin", ".sqlite"))
    header = {
        "version": VERSION,
        "folder": version.name,
        "rank_by": making.rank_by,
        "encoder": args.encoder or noted_encoder(test.embeddings_path),
        "fields": names_of_fields(making.texts),
        "others": names_of_fields(making.others),
        "numbers": all(type(name) is int for name in making.names.ids),
        "arrays": widths(test, parts),
        "files": {str(path.relative_to(version)): fingerprint(path) for path in files},
        "made_from": {"dataset": str(args.dataset), "ckpt_path": args.ckpt_path if parts else None},
    }
    header = json.loads(json.dumps(header))  # as it will be read
    check_header(args.output / HEADER, header)
    Bundle(args.output / HEADER, header, "cpu").store.items([0])  # what cannot be opened replaces nothing
    save_json(args.output / HEADER, header)
    for earlier in args.output.iterdir():
        if earlier.name not in (HEADER, LOCK, version.name) and is_own(earlier):
            shutil.rmtree(earlier, ignore_errors=True) if earlier.is_dir() else earlier.unlink(missing_ok=True)


def choose_ranking(args: argparse.Namespace, test: TestSet) -> str:
    """The best ranking that the data allow."""
    if test.log is None:
        return "model" if args.ckpt_path else "text"
    return "blend" if args.ckpt_path else "log"


def whole_histories(test: TestSet) -> Sequences | None:
    """The log with the last items: a list of the test stands in for the beginning of it that the log has."""
    if test.log is None:
        return None
    lists = dict(zip(test.log.users, test.log.lists(), strict=True))
    others = []
    for user, items in zip(test.sequences.users, test.sequences.lists(), strict=True):
        if lists.get(user) == items[: len(lists.get(user, ()))]:
            lists[user] = items
        else:  # another user, as where each file has numbered its users for itself
            others.append(items)
    if others:
        print(f"{len(others)} lists of the test go on no list of {HISTORIES}: counted as those of other users")
    return Sequences.of(*lists.values(), *others)


def obtain_blend(
    args: argparse.Namespace, rank_by: str, test: TestSet, rows: np.ndarray, parts: Parts | None
) -> dict[str, Fitted]:
    """The blend of a ranking, read from DATASET/blend.json where that fits, or fitted; none for the model alone."""
    kind = RANKINGS[rank_by]
    if kind is None:
        return {}
    if kind == NO_LOG:
        return {kind: Fitted(load_blends(SHIPPED)[kind], 0)}
    folder, network, made_with = test.embeddings_path.parent, None, {}
    if parts is not None:
        log = folder / HISTORIES
        predicts, device = parts.model.config.predicts, next(parts.model.parameters()).device
        fitted_with = load_fitted_with(parts.metadata, args.ckpt_path, predicts, device, log) or parts.model
        made_with = blend_origin(parts.model, fitted_with, parts.tokenizer)
        network = partial(scores_of_all, fitted_with, parts.catalog, USERS)
        try:
            made_from = origin_of_fit(test, made_with, exclude_history=True)
            blend = load_blends(folder / "blend.json", made_from, (kind,))[kind]
        except InputError:
            pass  # none, or one made from other files
        else:
            print(f"weights of the blend: {folder / 'blend.json'}")
            return {kind: Fitted(blend, 0)}
    candidates = np.flatnonzero(np.any(test.embeddings, axis=1))
    fitted = fit_to_log(test.log, rows, candidates, exclude_history=True, network=network)[kind]
    print(f"weights of the blend: fitted to the last items of {fitted.users} users of {HISTORIES}")
    return {kind: fitted}


def reads_texts(test: TestSet, parts: Parts) -> bool:
    """Whether a model reads embeddings as texts are compared by; of few items only the former are whitened."""
    return parts.tokenizer.whitens and are_whitened(*test.embeddings.shape)


def widths(test: TestSet, parts: Parts | None) -> dict[str, tuple[int, str]]:
    """The arrays of a bundle: name -> width and dtype."""
    arrays = {"texts": (test.embeddings.shape[1], "float32")}
    if parts is not None:
        arrays["codes"] = (parts.catalog.codes.shape[1], "int16")
        if not reads_texts(test, parts):
            arrays["embeddings"] = arrays["texts"]
    return arrays


def write(version: Path, making: Making) -> None:
    """Write all but bundle.json into an empty folder."""
    test, names, texts, others, rows, whitening, parts, blend, rank_by = making
    save_whitening(version / "whitening.npz", whitening)
    if parts is not None:
        parts.model.save_weights(version / "model")
        parts.tokenizer.save_weights(version / "tokenizer")
    if blend:
        save_blends(version / "blend.json", blend, {"rank_by": rank_by})
    if rank_by in ("blend", "log"):
        domain = Domain.of(Statistics.of(rows, whole_histories(test)))
        (version / "log").mkdir()
        save_log(version / "log", domain.log, domain.ease)
    try:
        ids = [check_id(name) for name in names.ids]
    except ValueError as error:
        raise InputError(
            f"{test.embeddings_path.parent / 'item_ids.jsonl'}: {error}. Make the data set again (import_dataset.py)."
        ) from error
    items = [
        Item(name, title, {**(texts.get(number) or {}), **others.get(number, {})})
        for number, (name, title) in enumerate(zip(ids, names.titles, strict=True))
    ]
    arrays = {"texts": rows}
    if parts is not None:
        arrays |= {"codes": parts.catalog.codes, "embeddings": test.embeddings}
        if parts.tokenizer.whitens and not reads_texts(test, parts):
            preparing = Whitening.of(test.embeddings)
            save_whitening(version / "prepared.npz", preparing)
            arrays["embeddings"] = preparing(test.embeddings)
    store = ItemStore.create(version, widths(test, parts))
    store.append(items, arrays, ~np.any(test.embeddings, axis=1))


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
        items = [(bundle.own_form(item), fields) for item, fields in read_items_file(args, bundle.known)]
        count, done = (bundle.add(items), "added") if args.change == "add" else (bundle.update(items), "updated")
    print(f"{args.bundle}: {count} item{'s' * (count != 1)} {done}")
    if args.change == "add" and bundle.log is not None:
        print("  The log knows nothing of new items, so they seldom come up: see docs/serving.md, New items.")


if __name__ == "__main__":
    run(main)
