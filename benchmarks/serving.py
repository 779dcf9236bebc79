"""Milliseconds of one call of the library, from a history of ids to a list with titles and probabilities.

    python benchmarks/serving.py
    python benchmarks/serving.py --rank_by log blend --lengths 20

A model of the published size with drawn weights, a catalog with drawn texts and a log with popular items are made into
a bundle by the command, and opened. First the gate: for some users the lists are those of a plain sum over all items;
otherwise no time is printed. Then, in turn, calls for one history of each length, other ones each time.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import numpy as np
import torch

from ae_trainer import AutoEncoder
from benchmarks import common
from benchmarks.blend import draw_log
from model import RecGPT, RecGPTConfig
from serving.live import LiveHistories
from serving.recommender import Recommender
from serving.scoring import scores_of_all
from utils.blend import Blender
from utils.checkpoint import save_state
from utils.cli import positive_int, run
from utils.data import Catalog, Sequences
from utils.errors import InputError
from utils.files import save_json, save_matrix, staged_set
from utils.pickles import save_pickle
from utils.util import set_seed

CHECKED_USERS = 8
ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Build, check, time, report."""
    flags = common.benchmark_parser(__doc__)
    flags.add_argument("--rank_by", nargs="+", default=["model", "blend", "log"], help="as of serving.bundle")
    flags.add_argument("--lengths", nargs="+", type=positive_int, default=[3, 20, 255], help="items of a history")
    flags.add_argument("--half", action="store_true", help="weights of 16 bits")
    flags.add_argument("--log_users", type=positive_int, default=20_000, help="histories of the log")
    flags.add_argument("--tf_layer", type=positive_int, default=3, help="transformer layers")
    flags.add_argument("--width", type=positive_int, default=768, help="hidden width")
    flags.set_defaults(repeats=50)
    args = flags.parse_args()
    common.check_results(args)
    device, result = torch.device("cpu"), {}
    with tempfile.TemporaryDirectory() as folder:
        make_parts(Path(folder), args)
        for rank_by in args.rank_by:
            recommender = make_bundle(Path(folder), rank_by)
            check(recommender)
            if args.half:
                recommender = Recommender.open(Path(folder) / rank_by, half=True)
                check(recommender)
            for length in args.lengths:
                taken = time_calls(recommender, length, args, device)
                result[f"{rank_by}_{length}_items_ms"] = statistics.median(taken)
            result[f"{rank_by}_one_more_item_ms"] = statistics.median(time_live(recommender, args, device))
    result["matrix_gflops"] = common.matrix_rate(device) / 1e9
    common.report("serving", args, device, result)


def make_parts(folder: Path, args: argparse.Namespace) -> None:
    """Write a data set directory, a tokenizer and a model, all drawn."""
    set_seed(args.seed)
    rng, width = np.random.default_rng(args.seed), common.EMBEDDING_WIDTH
    rows, lists = rng.standard_normal((args.items, width), dtype=np.float32), draw_log(args, rng).lists()
    with staged_set(folder / "data", ("train.pkl", "test.pkl", "item_text_dict.pkl")) as staging:
        save_pickle(staging / "train.pkl", {user: items[:-1] for user, items in enumerate(lists)})
        save_pickle(staging / "test.pkl", dict(enumerate(lists)))
        save_pickle(staging / "item_text_dict.pkl", {item: {"title": f"item {item}"} for item in range(args.items)})
        save_matrix(staging / "item_text_embeddings.npy", rows)
        save_json(staging / "item_text_embeddings.json", {})
    tokenizer = AutoEncoder(width)
    tokenizer.start_from(rows)
    save_state(folder / "tokenizer.pt", tokenizer.state_dict(), {})
    model = RecGPT(RecGPTConfig(layers=args.tf_layer, width=args.width))
    save_state(folder / "model.pt", model.state_dict(), {"config": {"heads": model.config.attention_heads}})


def make_bundle(folder: Path, rank_by: str) -> Recommender:
    """Make a bundle by the command, and open it."""
    command = ["-m", "serving.bundle", "--dataset", folder / "data", "--rank_by", rank_by, "--device", "cpu"]
    command += ["--ckpt_path", folder / "model.pt", "--vae_ckpt", folder / "tokenizer.pt", "--output", folder / rank_by]
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)
    return Recommender.open(folder / rank_by)


def check(recommender: Recommender) -> None:
    """InputError unless lists are the best of all items by scores that predict.py's functions compute."""
    bundle, view = recommender.bundle, recommender.view()
    rng, items = np.random.default_rng(1), view.change.numbers
    lists = [rng.integers(0, items, length).tolist() for length in range(1, CHECKED_USERS + 1)]
    histories, said = Sequences.of(*lists), None
    if bundle.reads_model:
        said = scores_of_all(bundle.model, Catalog(view.catalog.codes, view.catalog.embeddings), 8, histories)
    scores = said
    if bundle.blend is not None:
        scores = Blender(bundle.blend, view.domain, np.arange(items)).scores(histories, said)
    scores = scores.double().numpy()
    for row, history in enumerate(lists):
        scores[row, history] = -np.inf
    found = [[one.id for one in listed] for listed in recommender.recommend(lists, k=common.TOP)]
    best = -np.sort(-scores, axis=1)[:, : common.TOP]
    if not np.allclose(np.take_along_axis(scores, np.array(found), 1), best, atol=1e-3):
        raise InputError("wrong: the lists are not the best of all items; no time is reported")


def time_calls(recommender: Recommender, length: int, args: argparse.Namespace, device: torch.device) -> list[float]:
    """Milliseconds of calls for one history of `length` items each."""
    rng, taken = np.random.default_rng(args.seed), []
    for _ in range(args.repeats + 3):
        history = rng.integers(0, args.items, length).tolist()
        taken.append(common.seconds(lambda: recommender.recommend([history], k=common.TOP), device) * 1e3)  # noqa: B023
    return taken[3:]


def time_live(recommender: Recommender, args: argparse.Namespace, device: torch.device) -> list[float]:
    """Milliseconds of one more item on a live history that had 20 or more, and the list after it.

    InputError unless the list is that of the whole history.
    """
    rng, live, taken = np.random.default_rng(args.seed), LiveHistories(recommender), []
    history = rng.integers(0, args.items, 20).tolist()
    live.start("user", history)

    def add() -> None:
        live.add("user", history[-1])
        found.extend(live.recommend("user", k=common.TOP))

    for _ in range(args.repeats + 3):
        history, found = [*history, int(rng.integers(args.items))], []
        taken.append(common.seconds(add, device) * 1e3)
    (expected,) = recommender.recommend([history[-live.read("user") :] if live.read("user") else history], k=common.TOP)
    if not np.allclose(*([one.probability for one in side] for side in (found, expected)), rtol=1e-4):
        raise InputError("wrong: a live history has another list than the whole one; no time is reported")
    return taken[3:]


if __name__ == "__main__":
    run(main)
