"""Users per second of prediction, model and exact search together, against the published formulation.

    python benchmarks/predict.py --sequences data/test/steam/test.pkl
    python benchmarks/predict.py --items 15066 --users 1000 --repeats 3 --results predict.jsonl

First the gate: users of the run are predicted one by one by the published model and ranked by a full sort; where the
scores of a list differ by more than 1e-4, no time is printed. Then in turn: all users in batches of equal work; one
shuffled batch padded to its longest history, with eager attention, the logits of every token, and a trie of Python
dictionaries walked per user and beam.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import numpy as np
import torch

import predict
from benchmarks import common
from benchmarks.published import PublishedModel, dictionary_trie, padded_rows, walk_trie
from utils.cli import positive_int, run
from utils.data import Catalog, Sequences
from utils.errors import InputError
from utils.fsq import PUBLISHED
from utils.Trie import Trie

CHECKED_USERS = 16
COMPARED_RATE = 131e9  # FLOP/s of the matrix product to which rates are scaled, so that machines compare


def main() -> None:
    """Build, check, time, report."""
    flags = common.benchmark_parser(__doc__)
    common.add_published_flags(flags)
    common.add_model_flags(flags)
    flags.add_argument("--users", type=positive_int, default=1000, help="users per repeat, drawn at random")
    flags.add_argument("--test_batch_size", type=positive_int, default=48, help="users per batch")
    args = flags.parse_args()
    rng, device, catalog, model, published = common.build(args)
    model.eval(), published.eval()
    histories, targets = common.draw_histories(args, args.users, rng).split_targets()
    histories = histories.last(255)
    args.protocol, args.search = "corrected", "exact"  # which the report repeats
    trie, protocol = Trie(catalog.codes).to(device), predict.PROTOCOLS[args.protocol]
    find = predict.make_search(args.search, trie, common.TOP, catalog.codes, targets, protocol.ids_decide)

    def recommend(some: Sequences) -> predict.Found:
        batches = protocol.batches(some.lengths, args.test_batch_size)
        return predict.Found(*predict.recommend(model, some, catalog, find, batches))

    check(published, histories, catalog, recommend)

    dictionaries = None if args.no_published else dictionary_trie(catalog.codes)
    count = min(args.test_batch_size, len(histories))  # users whom the published formulation serves at once

    def recommend_part(repeat: int) -> None:
        start = repeat * count % max(1, len(histories) - count)
        some = histories.select(np.arange(start, start + count))
        recommend_published(published, some, catalog, dictionaries, device)

    runs, useful = (lambda _: recommend(histories), recommend_part), flops(histories.lengths, args.tf_layer, args.width)
    result = common.time_in_turn(args, device, "users", runs, (len(histories), count), useful)
    result["users_per_s_at_131_gflops"] = result["share_of_matrix_rate"] * COMPARED_RATE * len(histories) / useful
    result["mean_history"] = histories.lengths.mean()
    common.report("predict", args, device, result)


def flops(lengths: np.ndarray, layers: int, width: int) -> float:
    """FLOPs of predicting from histories of lengths (B,): the last block computes only the last item's queries."""
    whole = common.model_flops(lengths, layers - 1, width, vocabulary=0)
    keys_values = 2 * PUBLISHED.per_item * lengths.sum() * 2 * width**2
    per_query = 10 * width**2 + 2 * width * PUBLISHED.per_item * lengths.mean() + width * PUBLISHED.vocabulary
    return whole + keys_values + 2 * PUBLISHED.per_item * len(lengths) * per_query


@torch.inference_mode()
def recommend_published(
    model: PublishedModel, histories: Sequences, catalog: Catalog, trie: dict, device: torch.device
) -> list[list[int]]:
    """The published way: one batch, padded to its longest history, all logits, and a walk per user and beam."""
    rows = padded_rows(histories, catalog, int(histories.lengths.max()))
    logits = model(*(side.to(device) for side in rows)).unflatten(1, (-1, PUBLISHED.per_item))  # (B, L, K, V)
    last = torch.from_numpy(histories.lengths - 1)
    return walk_trie(logits[torch.arange(len(last)), last].float().cpu(), trie, common.TOP)


@torch.inference_mode()
def check(published: PublishedModel, histories: Sequences, catalog: Catalog, recommend) -> None:
    """InputError unless the lists are those of users who are predicted one by one and ranked by a full sort."""
    some = histories.select(np.arange(min(CHECKED_USERS, len(histories))))
    found, device = recommend(some).items, next(published.parameters()).device
    codes = torch.from_numpy(catalog.codes).long()
    for user in range(len(some)):
        rows = padded_rows(some.select(np.array([user])), catalog, int(some.lengths[user]))
        logits = published(*(side.to(device) for side in rows))[0, -PUBLISHED.per_item :]
        log_probs = logits.log_softmax(-1).cpu()  # (K, V)
        scores = sum(log_probs[slot, codes[:, slot]] for slot in range(PUBLISHED.per_item))
        # Rounding may order nearly equal scores otherwise: compare what was found by score.
        expected = torch.sort(scores, descending=True).values[: common.TOP]
        if not torch.allclose(scores[found[user]], expected, atol=1e-4):
            raise InputError(f"wrong: user {user}'s list is not the best of the catalog; no time is reported")


if __name__ == "__main__":
    run(main)
