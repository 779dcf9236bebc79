"""Choose the weights of the blend that the program ships for domains without a log, on other domains.

    python benchmarks/default_blend.py data/test/baby data/test/office data/test/yelp
    python benchmarks/default_blend.py data/test/baby data/test/office data/test/yelp --leave_out baby

Of each data set directory the targets are the last items in test.pkl. Without a log only three things count: nearness
to the history, nearness to its last item, and whether an item is in the history; so the last two have one weight each.
Chosen is, from a grid, what has the highest NDCG@10 over that of nearest text, as a mean over domains, for users with a
new target, among what is at least 1.1 times nearest text for users whose target is in their history.
--leave_out writes nothing: it prints, for each domain named, how the weights chosen on the others do there.
"""

import argparse
import itertools
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import numpy as np
import torch

from utils.blend import NO_LOG, Blend, Domain, Fitted, prepare
from utils.blend_files import SHIPPED, save_blends
from utils.cli import parser, positive_int, run, seed
from utils.datasets import load_test
from utils.errors import InputError
from utils.files import check_writable
from utils.metrics import Ranks, score_ranks, user_metrics
from utils.scores import nearest_text, rank_by, repeats
from utils.util import print_table
from utils.whitening import whiten

K = 10  # of NDCG
SCALE = 10.0  # of all weights, which decides no ranking: about what a fit of the first one alone gives
LAST, HISTORY = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5), (-0.5, -0.6, -0.7, -0.8, -0.9)  # weights tried, over that of the mean
REPEATED = 1.1  # at least so many times nearest text where the target is in the history
GRID = list(itertools.product(LAST, HISTORY))
NEAREST, NEAREST_NEW, BLEND, BLEND_NEW = range(4)  # rows of NDCG; of NEW the user's own items are no candidates


def main() -> None:
    """Measure every domain, choose, and write or report."""
    args = parse()
    measured = {path.name: measure(path, args.users, args.seed) for path in args.directories}
    for name in args.leave_out:
        last, history = choice = choose([found for other, found in measured.items() if other != name])
        print(f"\n{name}, text_last {last:g} and in_history {history:g} times text_mean")
        report(*measured[name], GRID.index(choice))
    if not args.leave_out:
        last, history = choose(list(measured.values()))
        weights = {"text_mean": SCALE, "text_last": SCALE * last, "in_history": SCALE * history}
        blend = Blend(weights, dict.fromkeys(weights, 1.0))
        users = sum(len(repeated) for _, repeated in measured.values())
        save_blends(args.output, {NO_LOG: Fitted(blend, users)}, {"domains": sorted(measured), "seed": args.seed})
        print(f"{args.output} written: {weights}")


def parse() -> argparse.Namespace:
    """The command line."""
    flags = parser(__doc__)
    flags.add_argument("directories", nargs="+", type=Path, metavar="DIRECTORY", help="data set directories")
    flags.add_argument("--leave_out", nargs="+", default=[], metavar="NAME", help="report on these domains")
    flags.add_argument("--users", type=positive_int, default=3000, help="users of a domain, beside repeating ones")
    flags.add_argument("--output", type=Path, default=SHIPPED, help="the file of weights")
    flags.add_argument("--seed", type=seed, default=0, help="which users are drawn")
    args = flags.parse_args()
    names = [path.name for path in args.directories]
    if len(set(names)) < len(names) or not set(args.leave_out) <= set(names) or len(names) <= bool(args.leave_out):
        raise InputError(f"directories need names of their own, --leave_out some of two or more; found {names}")
    check_writable(args.output)
    return args


def measure(path: Path, users: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """NDCG (4, G, U) of a domain's users by nearest text and every weight of the grid; and who repeats, (U,) bool."""
    test = load_test(path, cold=False, drop_short=True)
    histories, targets = test.sequences.split_targets()
    repeated = repeats(histories, targets)
    order = np.random.default_rng(number).permutation(len(targets))
    drawn = np.sort(np.concatenate([order[~repeated[order]][:users], order[repeated[order]][:users]]))
    known, near = np.any(test.embeddings, axis=1), nearest_text(test.embeddings)
    drawn = drawn[known[targets[drawn]]]
    histories, targets = histories.select(drawn), targets[drawn]
    domain, candidates = Domain(whiten(test.embeddings)), np.flatnonzero(known)
    gains, done = np.zeros((4, len(GRID), len(targets))), 0
    for row, exclude in ((NEAREST, False), (NEAREST_NEW, True)):
        gains[row] = gain(rank_by(near, histories, targets, known, exclude))
    for chunk in prepare(domain, histories, targets, candidates, exclude_history=False):
        users = slice(done, done := done + len(chunk.targets))
        (own, _), *_ = chunk.sparse
        for last in LAST:
            scores = chunk.dense[0] + last * chunk.dense[1]
            scores.view(-1)[chunk.barred] = -torch.inf
            for history in HISTORY:
                with_own = scores.clone()
                with_own.view(-1)[own] += history
                gains[BLEND, GRID.index((last, history)), users] = gain(score_ranks(with_own, chunk.targets))
            scores.view(-1)[own] = -torch.inf
            found = gain(score_ranks(scores, chunk.targets))
            for history in HISTORY:
                gains[BLEND_NEW, GRID.index((last, history)), users] = found
    print(f"{path.name}: {(~repeated[drawn]).sum()} users with a new target, {repeated[drawn].sum()} who repeat one")
    return gains, repeated[drawn]


def gain(ranks: Ranks) -> np.ndarray:
    """NDCG@10 of users, (U,) float64."""
    return user_metrics(ranks, [K])[:, 1].numpy()


def choose(domains: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """The entry of the grid for some domains, each as `measure` returns it."""
    new = [gains[:, :, ~repeated].mean(2) for gains, repeated in domains]
    ratios = np.mean([np.log(means[BLEND] / means[NEAREST]) for means in new], axis=0)  # (G,)
    again = np.concatenate([gains[:, :, repeated] for gains, repeated in domains], axis=2).sum(2)
    allowed = again[BLEND] >= REPEATED * again[NEAREST]  # also where nobody repeats
    return GRID[int(np.argmax(np.where(allowed, ratios, -np.inf)))]


def report(gains: np.ndarray, repeated: np.ndarray, entry: int) -> None:
    """Print NDCG of a domain by an entry of the grid, and how it compares with nearest text."""
    rows = []
    for group, sides, members in (
        ("new target, history excluded", (NEAREST_NEW, BLEND_NEW), ~repeated),
        ("new target", (NEAREST, BLEND), ~repeated),
        ("target in history", (NEAREST, BLEND), repeated),
    ):
        if members.any():
            near, blend = (float(gains[side, entry, members].mean()) for side in sides)
            rows.append([group, int(members.sum()), near, blend, blend / near])
    print_table(["", "users", "nearest text", "blend (no log)", "ratio"], rows)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run(main)
