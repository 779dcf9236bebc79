"""How long a bundle of many items takes to open and to change, and the memory of each further process.

    python benchmarks/bundle_sizes.py
    python benchmarks/bundle_sizes.py --items 15500000 --folder big

A bundle that ranks by a model of the published size with drawn weights, of items with drawn codes and embeddings. It is
opened by two processes, of which the second is measured: seconds to open it, without the imports, and its own memory,
by what the system counts as private, after the imports, when it is open, and after six answers. First the gate: the
lists are the best of all items by scores that numpy adds up; otherwise nothing is printed. Then items are added whose
embeddings are given, and the first process takes them over.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import numpy as np
import torch

from ae_trainer import AutoEncoder
from benchmarks import common
from model import RecGPT, RecGPTConfig
from serving.bundles import HEADER, PREFIX, VERSION, Bundle, save_whitening
from serving.recommender import Recommender
from serving.store import Item, ItemStore
from utils.cli import positive_int, run
from utils.data import Catalog, Sequences, make_batch
from utils.errors import InputError
from utils.files import fingerprint, save_json
from utils.fsq import PUBLISHED
from utils.util import set_seed
from utils.whitening import Whitening

ROOT = Path(__file__).resolve().parents[1]
AT_ONCE = 1 << 18  # items that are drawn and written together
OPENED = """
import json, sys, time
import numpy, torch
from serving.recommender import Recommender

def private():
    lines = (line.split() for line in open("/proc/self/smaps_rollup"))
    return sum(int(line[1]) for line in lines if line[0].startswith("Private_")) / 1024

before, started = private(), time.perf_counter()
recommender = Recommender.open(sys.argv[1])
recommender.view()
seconds, opened = time.perf_counter() - started, private()
answers = []
for _ in range(6):
    started = time.perf_counter()
    recommender.recommend([[1, 2, 3]], k=20)
    answers.append(time.perf_counter() - started)
said = {"open_s": seconds, "first_answer_s": answers[0], "answer_s": sorted(answers[1:])[2]}
print(json.dumps({**said, "imports": before, "opened": opened, "private": private()}))
sys.stdout.flush()
sys.stdin.readline()
"""


def main() -> None:
    """Make a bundle, check, time, report."""
    flags = common.benchmark_parser(__doc__)
    flags.add_argument("--width", type=positive_int, default=384, help="of the embeddings")
    flags.add_argument("--added", type=positive_int, default=1000, help="items of a change")
    flags.add_argument("--hidden", type=positive_int, default=768, help="width of the model")
    flags.add_argument("--folder", type=Path, help="where the bundle is made and kept; a temporary folder by default")
    flags.set_defaults(items=1_000_000)
    args = flags.parse_args()
    common.check_results(args)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary) / "bundle"
        if not (folder / HEADER).exists():
            make_bundle(folder, args)
        check(Recommender.open(folder))
        with opened(folder), opened(folder) as second:  # the first, so that the other finds mapped files shared
            result = {
                "open_s": second["open_s"],
                "first_answer_s": second["first_answer_s"],
                "answer_s": second["answer_s"],
                "private_imports_MiB": second["imports"],
                "private_opened_MiB": second["opened"],
                "private_after_answers_MiB": second["private"],
            }
        result |= change(folder, args)
    common.report("bundle_sizes", args, torch.device("cpu"), result)


def make_bundle(folder: Path, args: argparse.Namespace) -> None:
    """Write a bundle of drawn items, some at a time."""
    set_seed(args.seed)
    version = folder / f"{PREFIX}00000000"
    version.mkdir(parents=True)
    model = RecGPT(RecGPTConfig(layers=3, width=args.hidden, embedding_width=args.width))
    tokenizer = AutoEncoder(args.width, whitens=True)
    model.save_weights(version / "model")
    tokenizer.save_weights(version / "tokenizer")
    save_whitening(version / "whitening.npz", Whitening(np.zeros(args.width), np.eye(args.width)))
    arrays = {"texts": (args.width, "float32"), "codes": (PUBLISHED.per_item, "int16")}
    store, rng = ItemStore.create(version, arrays), np.random.default_rng(args.seed)
    block = rng.standard_normal((AT_ONCE, args.width), dtype=np.float32)
    for start in range(0, args.items, AT_ONCE):
        count = min(AT_ONCE, args.items - start)
        rows = block[:count] * rng.choice(np.float32([-1, 1]), args.width)  # other rows each time, drawn fast
        codes = rng.integers(0, PUBLISHED.size, (count, PUBLISHED.per_item), dtype=np.int16)
        items = (Item(number, f"item {number}", {"title": f"item {number}"}) for number in range(start, start + count))
        store.append(items, {"texts": rows, "codes": codes}, np.zeros(count, dtype=bool))
    files = [path for path in version.rglob("*") if path.is_file() and path.suffix not in (".bin", ".sqlite")]
    header = {"version": VERSION, "folder": version.name, "rank_by": "model", "encoder": None, "numbers": True}
    header |= {"fields": ["title"], "others": [], "arrays": arrays}
    save_json(folder / HEADER, {**header, "files": {str(p.relative_to(version)): fingerprint(p) for p in files}})


def check(recommender: Recommender) -> None:
    """InputError unless a list is the best of all items by scores that numpy adds up."""
    view, history = recommender.view(), [1, 2, 3, 2]
    model, catalog = view.bundle.model, view.catalog
    with torch.inference_mode():
        batch = make_batch(Sequences.of(history), Catalog(catalog.codes, catalog.embeddings))
        table = model.next_item(batch)[0].log_softmax(-1).double().numpy()  # (K, V)
    scores = np.concatenate(
        [
            sum(table[slot, catalog.codes[start : start + AT_ONCE, slot]] for slot in range(PUBLISHED.per_item))
            for start in range(0, view.change.numbers, AT_ONCE)
        ]
    )
    scores[history] = -np.inf
    found = [one.id for one in recommender.recommend([history], k=common.TOP)[0]]
    best = -np.sort(-np.partition(scores, -common.TOP)[-common.TOP :])
    if not np.allclose(scores[found], best, atol=1e-3):
        raise InputError("wrong: the list is not the best of all items; no time is reported")


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[dict[str, float]]:
    """A process that has the bundle open in the block, and what it measured."""
    command = [sys.executable, "-c", OPENED, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()


def change(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Seconds to add items, and until a recommender that has the bundle open has them, medians of some changes."""
    reader, writer = Recommender.open(folder), Bundle.open(folder)
    rng, added, seen = np.random.default_rng(args.seed), [], []
    first = reader.view().change.numbers
    for number in range(args.repeats):
        ids = range(first + number * args.added, first + (number + 1) * args.added)
        rows = rng.standard_normal((args.added, args.width), dtype=np.float32)
        started = time.perf_counter()
        writer.add([(one, {"title": f"new {one}"}) for one in ids], rows)
        added.append(time.perf_counter() - started)
        started = time.perf_counter()
        if not reader.has_item(ids[-1]):
            raise InputError("wrong: an item that was added is not there; no time is reported")
        seen.append(time.perf_counter() - started)
    return {"add_s": statistics.median(added), "taken_over_s": statistics.median(seen)}


if __name__ == "__main__":
    run(main)
