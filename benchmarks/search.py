"""Milliseconds per user of the search alone, by catalog size and by how sharp the distributions are.

    python benchmarks/search.py --items 15066
    python benchmarks/search.py --items 15491643 --entropy 2 4 6 --no_published

Catalogs of random items, logits scaled to a mean entropy of the codes. First the gate: for some users the lists equal
a full sort of plainly summed scores, and for all users both ways of searching agree; otherwise no time is printed. Then
in turn: exact search, a scan of the whole catalog, our beam search, and the published formulation, a walk through
Python dictionaries per user and beam (approximate; not for millions of items: its dictionaries take kilobytes an item).
"""

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import numpy as np
import torch

from benchmarks import common
from benchmarks.published import dictionary_trie, walk_trie
from utils.cli import positive_float, positive_int, run
from utils.errors import InputError
from utils.fsq import PUBLISHED
from utils.search import SCAN_USERS, TopK, beam_search, exact_search, scan
from utils.Trie import Trie
from utils.util import pick_device

CHECKED_USERS = 2


def main() -> None:
    """Build, check, time, report: one result per entropy."""
    flags = common.benchmark_parser(__doc__)
    common.add_published_flags(flags)
    flags.add_argument("--users", type=positive_int, default=48, help="users per batch")
    flags.add_argument("--entropy", type=positive_float, nargs="+", default=[2.0, 4.0, 6.0], help="mean, in nats")
    args = flags.parse_args()
    common.check_results(args)
    check_entropies(args.entropy)
    rng = np.random.default_rng(args.seed)
    device = pick_device(args)
    codes = common.draw_codes(args.items, rng)
    trie, built = build(codes)
    trie = trie.to(device)
    ways = {
        "exact": lambda part: exact_search(part, trie, common.TOP),
        "scan": lambda part: whole_scan(part, trie),
        "beam": lambda part: beam_search(part, trie, common.TOP),
    }
    if not args.no_published:
        dictionaries = dictionary_trie(codes)
        ways["published"] = lambda part: walk_trie(part.cpu(), dictionaries, common.TOP)
    for entropy in args.entropy:
        generator = torch.Generator().manual_seed(args.seed)
        users, shape = args.users * (args.repeats + 1), (PUBLISHED.per_item, PUBLISHED.vocabulary)
        random = torch.randn(users, *shape, generator=generator)
        logits = (random * scale_for(entropy, random[: args.users])).to(device).split(args.users)
        shares = check(logits[0], trie, codes)
        times = time_ways(ways, logits, args.published_repeats)
        medians = {f"{name}_ms_per_user": statistics.median(taken) for name, taken in times.items()}
        over_scan = statistics.median(a / b for a, b in zip(times["exact"], times["scan"], strict=True))
        result = {"entropy": entropy, **medians, "exact_over_scan": over_scan, **shares}
        if "published" in ways:
            result["ratio"] = medians["published_ms_per_user"] / medians["exact_ms_per_user"]
        result |= {**built, "all_exact_ms": [round(t, 3) for t in times["exact"]]}
        common.report("search", args, device, result)


def build(codes: np.ndarray) -> tuple[Trie, dict[str, float]]:
    """Build the index of codes (N, K), save it and open it; returns it, and the seconds and GiB that these take."""
    started = time.perf_counter()
    trie = Trie(codes)
    built = {"build_s": time.perf_counter() - started, "peak_gib": common.status("self", "VmHWM") / 2**20}
    with tempfile.TemporaryDirectory() as folder:
        for name, step in (("save_s", trie.save), ("open_s", Trie.open)):
            started = time.perf_counter()
            step(Path(folder) / "trie")
            built[name] = time.perf_counter() - started
    return trie, built | {"trie_gib": sum(tensor.nbytes for tensor in trie._tensors().values()) / 2**30}


def time_ways(ways: dict[str, Callable], logits: tuple[torch.Tensor, ...], published_repeats: int) -> dict[str, list]:
    """Time the ways in turn on the logits (B, K, V) of each repeat, in ms per user; the first is a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat, part in enumerate(logits):
        part.sum()  # touch it: no way is to pay for being the first
        names = list(ways)
        for name in names[repeat % len(ways) :] + names[: repeat % len(ways)]:  # another one first in every repeat
            if name != "published" or repeat <= published_repeats:
                taken = common.seconds(lambda: ways[name](part), part.device)  # noqa: B023 - called at once
                times[name].append(1e3 * taken / len(part))
    return {name: taken[1:] for name, taken in times.items()}


def check_entropies(entropies: list[float]) -> None:
    """InputError for more than the entropy of a uniform distribution, which no logits have."""
    most = math.log(PUBLISHED.vocabulary)
    if max(entropies) >= most:
        raise InputError(f"--entropy {max(entropies):g} cannot be reached; a uniform distribution has {most:.2f} nats.")


def scale_for(entropy: float, random: torch.Tensor) -> float:
    """The factor by which (B, K, V) logits give distributions of a mean entropy in nats, by bisection."""
    low, high = 0.0, 100.0
    for _ in range(40):
        middle = (low + high) / 2
        log_probs = (random * middle).log_softmax(-1)
        found = -(log_probs.exp() * log_probs).sum(-1).mean()
        low, high = (middle, high) if found > entropy else (low, middle)
    return low


def whole_scan(logits: torch.Tensor, trie: Trie) -> TopK:
    """The exact search that scores every item."""
    parts = [scan(part, trie, common.TOP) for part in logits.log_softmax(-1).split(SCAN_USERS)]
    return TopK(*(torch.cat(column) for column in zip(*parts, strict=True)))


def check(logits: torch.Tensor, trie: Trie, codes: np.ndarray) -> dict[str, float]:
    """InputError unless the lists are those of a scan and of a full sort; returns the `needed_shares`."""
    found, scanned = exact_search(logits, trie, common.TOP), whole_scan(logits, trie)
    if not torch.equal(found.items, scanned.items):
        raise InputError("wrong: the search's lists are not those of a scan of the catalog; no time is reported")
    for user in range(min(CHECKED_USERS, len(logits))):
        log_probs = logits[user].log_softmax(-1).cpu().numpy()
        scores = log_probs[0, codes[:, 0]]
        for slot in range(1, PUBLISHED.per_item):
            scores = scores + log_probs[slot, codes[:, slot]]
        best = np.argsort(-scores, kind="stable")[: common.TOP]
        if not np.array_equal(best, found.items[user, : len(best)].cpu()):
            raise InputError(f"wrong: user {user}'s list is not the best of the catalog; no time is reported")
    return needed_shares(logits, trie, found.scores[:, -1])


def needed_shares(logits: torch.Tensor, trie: Trie, kth: torch.Tensor) -> dict[str, float]:
    """Mean share of the catalog that has to be scored to prove the k-th score (B,), by two bounds.

    By gaps: items with a code whose gap is at most a quarter of the k-th item's. By the first code: items whose first
    code together with the best code in every other slot could still win.
    """
    log_probs = logits.log_softmax(-1)[..., : PUBLISHED.size]  # (B, K, codes)
    gaps = log_probs.amax(-1, keepdim=True) - log_probs
    allowed = (log_probs.amax(-1).sum(-1) - kth)[:, None, None]  # (B, 1, 1) gap of the k-th item
    items = trie.code_starts.diff(dim=1) / len(trie) / len(logits)  # (K, codes)
    return {
        "share_by_gaps": ((gaps <= allowed / PUBLISHED.per_item) * items).sum().item(),
        "share_by_first_code": ((gaps <= allowed)[:, 0] * items[0]).sum().item(),
    }


if __name__ == "__main__":
    run(main)
