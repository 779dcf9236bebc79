"""Milliseconds per user of the blend with RecGPT, beside exact search alone, and of the blend of the log.

    python benchmarks/blend.py --items 15066
    python benchmarks/blend.py --items 1000000 --embedding_width 384 --users 48

Random codes, texts and logits; a log with popular items, whose histories are also those served. First the gate: for
some users the lists equal a full sort of plainly summed features; otherwise no time is printed. Then in turn: exact
search by RecGPT alone, the blend with it, and the blend without it. Searching is timed, and neither the model nor what
is made once for a catalog.
"""

import argparse
import statistics
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import numpy as np
import torch

from benchmarks import common
from utils.blend import FEATURES, NETWORK, Blend, Blender, Domain
from utils.cli import positive_int, run
from utils.data import Sequences, cumulate
from utils.errors import InputError
from utils.fsq import PUBLISHED
from utils.scores import LogStatistics, history_weights, unit_rows
from utils.search import exact_search
from utils.Trie import Trie

CHECKED_USERS = 8
WEIGHTS = {"text_mean": 7.0, "text_last": 1.0, NETWORK: 0.3, "popularity": 0.5, "in_history": -4.0, "recency": 0.5}
WEIGHTS |= {"era": 0.5, "transitions": 0.3, "item_cosine": 10.0, "ease": 5.0}


def main() -> None:
    """Build, check, time, report."""
    flags = common.benchmark_parser(__doc__)
    flags.add_argument("--users", type=positive_int, default=48, help="users per batch")
    flags.add_argument("--log_users", type=positive_int, default=20_000, help="histories of the log")
    flags.add_argument("--embedding_width", type=positive_int, default=common.EMBEDDING_WIDTH, help="of the texts")
    args = flags.parse_args()
    common.check_results(args)
    rng, device = np.random.default_rng(args.seed), torch.device("cpu")
    codes = common.draw_codes(args.items, rng)
    trie, log = Trie(codes), draw_log(args, rng)
    rows = unit_rows(rng.standard_normal((args.items, args.embedding_width), dtype=np.float32))
    domain, every = Domain(rows, LogStatistics.of(log, args.items)), np.arange(args.items)
    blend = Blend(WEIGHTS, dict.fromkeys(WEIGHTS, 1.0))
    without = Blend({name: weight for name, weight in WEIGHTS.items() if name != NETWORK}, blend.scales)
    blenders = Blender(blend, domain, every, codes), Blender(without, domain, every)
    batches = [log.select(rng.integers(0, len(log), args.users)) for _ in range(args.repeats + 1)]
    generator = torch.Generator().manual_seed(args.seed)
    logits = torch.randn(args.users, PUBLISHED.per_item, PUBLISHED.vocabulary, generator=generator)
    check(blenders[0], batches[0], logits.log_softmax(-1), codes)
    ways = {
        "search": lambda batch: exact_search(logits, trie, common.TOP),
        "blend": lambda batch: blenders[0].search(batch, common.TOP, logits.log_softmax(-1)),
        "blend_without_recgpt": lambda batch: blenders[1].search(batch, common.TOP),
    }
    taken = {name: [] for name in ways}
    for batch in batches:
        for name, way in ways.items():
            taken[name].append(common.seconds(lambda: way(batch), device) / args.users * 1e3)  # noqa: B023
    times = {name: times[1:] for name, times in taken.items()}
    result = {f"{name}_ms_per_user": statistics.median(found) for name, found in times.items()}
    result["blend_over_search"] = statistics.median(
        blend / search for blend, search in zip(times["blend"], times["search"], strict=True)
    )
    result |= {"all_blend_ms": [round(found, 3) for found in times["blend"]]}
    common.report("blend", args, device, result)


def draw_log(args: argparse.Namespace, rng: np.random.Generator) -> Sequences:
    """Histories with a mean of about 14 items, of which few items make up most."""
    lengths = np.minimum(5 + rng.lognormal(1.35, 1.15, args.log_users), 1000).astype(np.int64)
    items = (args.items * rng.random(lengths.sum()) ** 3).astype(np.int64)
    return Sequences(None, items, cumulate(lengths))


def brute_force(blender: Blender, histories: Sequences, log_probs: torch.Tensor, codes: np.ndarray) -> np.ndarray:
    """Scores (B, N) float64 of all items: every feature as an array of its own, weighted and added."""
    domain, items = blender.domain, len(codes)
    decayed, last = history_weights(histories, items), history_weights(histories, items, reach=1)
    scores = blender.blend.factor("popularity") * np.log(domain.log.share.astype(np.float64))[None]
    for name, weights in (("text_mean", decayed), ("text_last", last)):
        scores = scores + blender.blend.factor(name) * (unit_rows(weights @ domain.rows) @ domain.rows.T)
    scores += blender.blend.factor("era") * domain.log.eras.gains(histories)
    for slot in range(PUBLISHED.per_item):
        scores += blender.blend.factor(NETWORK) * log_probs[:, slot, codes[:, slot].astype(np.int64)].numpy()
    transitions = (decayed @ domain.log.transitions).toarray()
    scores += blender.blend.factor("transitions") * np.log1p(transitions / (0.1 * domain.log.share))
    scores += blender.blend.factor("item_cosine") * np.sqrt((decayed @ domain.log.cosine).toarray())
    if domain.ease is not None:
        taken = np.zeros(scores.shape)
        for user, listed in enumerate(histories.lists()):
            taken[user, listed] = 1
        scores += blender.blend.factor("ease") * np.sqrt(taken @ domain.ease.toarray())
    for user, listed in enumerate(histories.lists()):
        latest = {item: 0.7 ** (len(listed) - 1 - place) for place, item in enumerate(listed)}
        for item, recency in latest.items():
            scores[user, item] += blender.blend.factor("in_history") + blender.blend.factor("recency") * recency
    return scores


def check(blender: Blender, histories: Sequences, log_probs: torch.Tensor, codes: np.ndarray) -> None:
    """InputError unless the lists are the best by a sum of full arrays, up to rounding."""
    part = histories.select(np.arange(min(CHECKED_USERS, len(histories))))
    found, scores = (
        blender.search(part, common.TOP, log_probs[: len(part)]),
        brute_force(blender, part, log_probs[: len(part)], codes),
    )
    best = -np.sort(-scores, axis=1)[:, : found.items.shape[1]]
    listed = np.take_along_axis(scores, found.items.numpy(), axis=1)
    if not (np.allclose(listed, best, atol=1e-3) and np.allclose(found.scores, best, atol=1e-3)):
        raise InputError("wrong: the lists are not the best of all items; no time is reported")


if __name__ == "__main__":
    assert set(WEIGHTS) == set(FEATURES)
    run(main)
