"""Users per second of prediction, model and exact search together, on random weights and a random catalog.

    python benchmarks/predict.py --sequences data/test/steam/test.pkl
    python benchmarks/predict.py --items 15066 --users 1000 --repeats 3 --results predict.jsonl

Without --sequences the histories' lengths are drawn like those of the released Steam test set (mean 12.7, median 8).
Before any timing, users of the run are predicted one by one and ranked by sorting the whole catalog; where a list
differs, no time is printed.
"""

import argparse
import datetime
import platform
import statistics
import sys
import time
from pathlib import Path

if __package__ in (None, ""):  # run as a file: let the repository root be found
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

import predict
from model import RecGPT, RecGPTConfig
from utils.cli import parser, positive_int, run, seed
from utils.data import Catalog, Sequences, cumulate, padded_batch
from utils.errors import InputError
from utils.fsq import CODEBOOK_SIZE, CODES_PER_ITEM
from utils.release import load_sequences
from utils.report import append_results
from utils.util import add_device_flags, pick_device, set_seed

CHECKED_USERS = 16
TOP = 20


def main() -> None:
    """Build, check, time, report."""
    flags = parser(__doc__)
    flags.add_argument("--sequences", metavar="FILE", help="test.pkl whose histories are used, ids modulo --items")
    flags.add_argument("--items", type=positive_int, default=15066, help="items of the catalog")
    flags.add_argument("--users", type=positive_int, default=1000, help="users per repeat, drawn at random")
    flags.add_argument("--repeats", type=positive_int, default=3, help="timed repeats, after one warm-up")
    flags.add_argument("--test_batch_size", type=positive_int, default=48, help="users per batch")
    flags.add_argument("--tf_layer", type=positive_int, default=3, help="transformer layers")
    flags.add_argument("--width", type=positive_int, default=768, help="hidden width")
    flags.add_argument("--seed", type=seed, default=0, help="weights, catalog, users")
    flags.add_argument("--results", metavar="FILE", help="append the result as JSON")
    add_device_flags(flags)
    args = flags.parse_args()
    args.protocol = "corrected"

    set_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    device = pick_device(args)
    model = RecGPT(RecGPTConfig(layers=args.tf_layer, width=args.width)).to(device).eval()
    codes = rng.integers(0, CODEBOOK_SIZE, (args.items, CODES_PER_ITEM)).astype(np.int16)
    catalog = Catalog(codes, rng.standard_normal((args.items, 768), dtype=np.float32))
    histories = draw_histories(args, rng).last(model.config.window - 1)
    search = predict.make_search("exact", codes, np.arange(args.items), TOP, device)

    check(model, histories, catalog, search, args)
    rates = []
    for repeat in range(args.repeats + 1):
        started = time.perf_counter()
        predict.recommend(model, histories, catalog, search, args)
        if repeat:  # the first is the warm-up
            rates.append(len(histories) / (time.perf_counter() - started))
    result = {
        "benchmark": "predict",
        "users_per_s": round(statistics.median(rates), 1),
        "all": [round(rate, 1) for rate in rates],
        "mean_history": round(float(histories.lengths.mean()), 2),
        "matrix_gflops": round(matrix_rate(device), 1),
        "machine": platform.processor() or platform.machine(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        **{name: vars(args)[name] for name in ("items", "users", "test_batch_size", "tf_layer", "width")},
    }
    print(result)
    append_results(args.results, [result])


def draw_histories(args: argparse.Namespace, rng: np.random.Generator) -> Sequences:
    """Random users of --sequences without their targets, or histories of lengths like theirs."""
    if args.sequences:
        sequences, _ = load_sequences(Path(args.sequences), "Name a test.pkl.").split_targets()
        chosen = rng.permutation(len(sequences))[: args.users]
        drawn = sequences.select(chosen)
        return Sequences(drawn.users, drawn.items % args.items, drawn.offsets)
    lengths = np.minimum(4 + rng.lognormal(1.35, 1.15, args.users), 1000).astype(np.int64)
    return Sequences(np.arange(args.users), rng.integers(0, args.items, lengths.sum()), cumulate(lengths))


@torch.inference_mode()
def check(model: RecGPT, histories: Sequences, catalog: Catalog, search, args: argparse.Namespace) -> None:
    """InputError unless lists equal those of users predicted one by one and ranked by a full sort."""
    some = histories.select(np.arange(min(CHECKED_USERS, len(histories))))
    found = predict.recommend(model, some, catalog, search, args).items
    codes = torch.from_numpy(catalog.codes.astype(np.int64))
    for user in range(len(some)):
        alone = padded_batch(some.select(np.array([user])), catalog).to(next(model.parameters()).device)
        log_probs = model.next_item_logits(alone)[0].log_softmax(-1).cpu()  # (K, V)
        scores = sum(log_probs[place, codes[:, place]] for place in range(CODES_PER_ITEM))
        # Nearly equal scores may change places from batch to batch: compare what was found by score.
        expected = torch.sort(scores, descending=True).values[:TOP]
        if not torch.allclose(scores[found[user]], expected, atol=1e-4):
            raise InputError(f"wrong: user {user}'s list is not the best of the catalog; no time is reported")


def matrix_rate(device: torch.device) -> float:
    """GFLOP/s of a (2048, 768) by (768, 3072) product in float32, the best of ten."""
    left, right = torch.randn(2048, 768, device=device), torch.randn(768, 3072, device=device)
    times = []
    for _ in range(10):
        started = time.perf_counter()
        (left @ right).sum().item()
        times.append(time.perf_counter() - started)
    return 2 * 2048 * 768 * 3072 / min(times) / 1e9


if __name__ == "__main__":
    run(main)
