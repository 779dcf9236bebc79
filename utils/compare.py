"""The model beside other recommenders: tables by group of users, intervals of the differences, and a verdict.

The recommenders stand in three groups, by what they need: nothing of the domain but its catalog; its log, the histories
of train.pkl; training on it. See docs/comparing.md.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from utils import scores
from utils.data import Sequences
from utils.datasets import TestSet, is_id, is_list
from utils.errors import InputError, shown
from utils.files import atomic_write, nan_to_none, read_jsonl
from utils.metrics import Ranks, TopKAccumulator, list_ranks, user_metrics
from utils.names import Names
from utils.util import table_lines

NO_LOG_BLEND, LOG_BLEND, BEST_BLEND = BLENDS = "blend (no log)", "blend (its log)", "blend with RecGPT"
REPEATED = ("target in history", "target is new")  # groups of users
MODEL = "RecGPT"  # with which all others are compared
NOTHING, LOG, TRAINING = NEEDS = ("nothing of the domain", "its log", "training")
RESAMPLES, CONFIDENCE, SEED = 2_000, 0.95, 0  # of the bootstrap
BOLD = "\033[1m\\1\033[0m "  # of a terminal
SAME, FEW = 0.5, 10  # a share of the lists that have one item; below so many times k candidates it says nothing
DRAWN = 1 << 22  # differences that it holds at once: 32 MiB
LISTS = "It must have the form that predict.py --output writes, with one line for each user of the test set."


class Method(NamedTuple):
    """A recommender beside the model."""

    needs: str  # one of NEEDS
    score: scores.Scorer
    candidates: np.ndarray  # (N,) bool, the items that it may recommend


def methods_of(
    test: TestSet, candidates: np.ndarray, known: scores.Statistics, files: Iterable[tuple[str, Path]] = ()
) -> dict[str, Method]:
    """Every recommender that a data set and what is `known` of it allow, by name, and those whose lists are in files.

    Those of texts recommend `candidates`, (N,) bool, the others all items. Prints which are left out, and why.

    Raises:
        InputError: a file has a name that is taken, or see `load_lists`.
    """
    items, every = len(candidates), np.ones_like(candidates)
    methods = {
        "repeat recent": Method(NOTHING, scores.repeat_recent(items), every),
        "nearest text": Method(NOTHING, scores.nearest_text(test.embeddings), candidates),
        "whitened text": Method(NOTHING, scores.whitened_text(known.rows), candidates),
    }
    for name, score in (log_scores(known) if known.log else {}).items():
        methods[name] = Method(LOG, score, every)
    for name, path in files:
        if name in (MODEL, *BLENDS, *methods):
            raise InputError(f"--compare {name}={path}: there is a row {name} already. Choose another name.")
        lists = load_lists(path, test.sequences.users, items)
        methods[name] = Method(TRAINING, scores.listed(lists, items), every)
    return methods


def log_scores(known: scores.Statistics) -> dict[str, scores.Scorer]:
    """The scores that a log allows, by name; prints whether EASE is left out."""
    share, transitions, cosine, eras = known.log
    found = {
        "popularity": scores.popular(share),
        **({"era popularity": scores.popular_in_era(share, eras)} if eras.gain.any() else {}),
        "transitions": scores.weighted_rows(transitions),
        "item cosine": scores.weighted_rows(cosine),
    }
    if known.ease is not None:
        found["EASE"] = scores.ease_score(known.ease)
    else:
        print(f"EASE is left out: it is for at most {scores.EASE_ITEMS} items, found {len(share)}")  # noqa: T201
    return found


def listed_name(user: Any) -> int | str:
    """A user's name in a file of lists, where a key is a number or a string."""
    return user if isinstance(user, (int, str)) else str(user)


def write_lists(
    path: str,
    users: np.ndarray,
    lists: Iterable[tuple[list[int], list[float]]],
    known: tuple[np.ndarray, Ranks] | None = None,
    names: Names | None = None,
) -> None:
    """Write a file of lists: one JSON object per user with user, items and scores, in the order of the data set.

    Args:
        path: of the file.
        users: (U,) keys.
        lists: items and scores of each user, best first.
        known: the targets (U,) and their ranks, where they are to be written: the rank is 1 for the best item, the
            mean of the places of equal scores, and null for a target that is not recommended.
        names: of the items, if ids and titles are to be written, too.
    """
    told = told_targets(*known, names) if known else [{}] * len(users)
    with atomic_write(path, "w") as file:
        for user, (items, values), target in zip(users.tolist(), lists, told, strict=True):
            line = {"user": listed_name(user), "items": items, "scores": values, **target}
            if names:
                line |= {"ids": [names.ids[item] for item in items], "titles": [names.titles[item] for item in items]}
            file.write(json.dumps(nan_to_none(line)) + "\n")


def told_targets(targets: np.ndarray, ranks: Ranks, names: Names | None) -> Iterator[dict[str, Any]]:
    """What `write_lists` says of each user's target."""
    for target, above, tied in zip(targets.tolist(), ranks.above.tolist(), ranks.tied.tolist(), strict=True):
        line = {"target": target, "rank": above + (tied + 1) / 2 if tied else None}
        yield line | ({"target_id": names.ids[target], "target_title": names.titles[target]} if names else {})


def load_lists(path: Path, users: np.ndarray, items: int) -> dict[Any, list[int]]:
    """Read another recommender's lists of some users (U,) from a file like that of --output, by the users' keys.

    Raises:
        InputError: a line without user or items, a user who is there twice or missing, or an id outside [0, items).
    """
    lists = {}
    for line, record in read_jsonl(path, LISTS):
        user, found = record.get("user"), record.get("items")
        if not isinstance(user, (int, str)) or not is_list(found) or not all(map(is_id, found)):
            raise InputError(f"{path}, line {line}: found {shown(record)}, expected user and items. {LISTS}")
        if user in lists:
            raise InputError(f"{path}, line {line}: user {shown(user)} is there twice. {LISTS}")
        if odd := [item for item in found if not 0 <= item < items]:
            raise InputError(f"{path}, line {line}: item {odd[0]} is none of the catalog (0 to {items - 1}). {LISTS}")
        lists[user] = found
    missing = [user for user in users.tolist() if listed_name(user) not in lists]
    if missing:
        raise InputError(f"{path}: user {shown(missing[0])} is missing; {len(missing)} user(s) like this. {LISTS}")
    return {user: lists[listed_name(user)] for user in users.tolist()}


def rank_methods(
    methods: dict[str, Method], histories: Sequences, targets: np.ndarray, k: int, ids_decide: bool, exclude: bool
) -> dict[str, Ranks]:
    """Ranks of the targets (U,) by every method; `exclude` leaves a user's own items out.

    Where `ids_decide` among equal scores, they are ranks in lists of k items, as in the published evaluation.
    """
    ranks = {}
    for name, (_, score, candidates) in methods.items():
        if ids_decide:
            lists = scores.lists_by(score, histories, candidates, k, exclude)
            ranks[name] = list_ranks(torch.from_numpy(lists), torch.from_numpy(targets))
        else:
            ranks[name] = scores.rank_by(score, histories, targets, candidates, exclude)
    return ranks


def user_groups(
    histories: Sequences, targets: np.ndarray, last_times: np.ndarray | None, exclude: bool
) -> dict[str, np.ndarray]:
    """The groups of users that have results of their own, each a mask (U,) bool.

    `exclude`, which leaves a user's own items out, leaves out those whose target is one of these, and says how many.
    """
    repeated = scores.repeats(histories, targets)
    again, new = REPEATED
    groups = {new: ~repeated}
    if not exclude:
        groups = {"all users": np.ones_like(repeated), again: repeated, **groups}
    elif repeated.any():
        print(f"{repeated.sum()} of {len(repeated)} users are left out: their target is in their history")  # noqa: T201
    if last_times is not None:
        later = last_times[:, 1] > last_times[:, 0]
        groups["target strictly later"] = later & ~repeated if exclude else later
    return groups


def user_gains(ranks: dict[str, Ranks], topk: list[int]) -> dict[str, np.ndarray]:
    """NDCG at the largest k of every user (U,) float64, by method."""
    return {name: user_metrics(found, topk)[:, 2 * len(topk) - 1].numpy() for name, found in ranks.items()}


def measure(
    ranks: dict[str, Ranks],
    needs: dict[str, str],
    groups: dict[str, np.ndarray],
    topk: list[int],
    pairs: Iterable[tuple[str, str]] = (),
) -> list[dict[str, Any]]:
    """Metrics of every method for every group of users, one result each; the first is the model's for the first group.

    `difference` is that of NDCG at the largest k to the model's, `low` and `high` its 95 % interval. `share` has the
    same of a method to another, for `pairs` of names.
    """
    gains = user_gains(ranks, topk)
    others = [name for name in ranks if name != MODEL]
    results = []
    for group, members in groups.items():
        users = int(members.sum())
        differences = np.array([gains[name][members] - gains[MODEL][members] for name in others])
        against = dict(zip(others, intervals(differences.reshape(len(others), users)), strict=True))
        for method, base in pairs:
            (found,) = intervals((gains[method] - gains[base])[None, members])
            against[method]["share"] = {"over": base, **found}
        for method, found in ranks.items():
            accumulator = TopKAccumulator(topk)
            accumulator.accumulate(found.select(torch.from_numpy(members)))
            result = {"method": method, "needs": needs.get(method), "group": group, "users": users}
            results.append({**result, **accumulator.reduce(), **against.get(method, {})})
    return results


def intervals(differences: np.ndarray) -> list[dict[str, float]]:
    """Means of users' differences (methods, U), each with the bounds of its interval; NaN for fewer than two users.

    Users are drawn anew with replacement, the same ones for all methods (paired percentile bootstrap).
    """
    methods, users = differences.shape
    if users < 2 or not methods:
        return [{"difference": row.mean() if users else np.nan, "low": np.nan, "high": np.nan} for row in differences]
    settings = {"n_resamples": RESAMPLES, "confidence_level": CONFIDENCE, "method": "percentile"}
    batch = max(1, DRAWN // differences.size)
    generator = np.random.default_rng(SEED)
    from scipy.stats import bootstrap  # heavy, and only needed here

    low, high = bootstrap((differences,), np.mean, axis=1, batch=batch, rng=generator, **settings).confidence_interval
    columns = zip(differences.mean(axis=1).tolist(), low.tolist(), high.tolist(), strict=True)
    return [dict(zip(("difference", "low", "high"), column, strict=True)) for column in columns]


def report(results: list[dict[str, Any]], topk: list[int]) -> None:
    """Print a table and a verdict for each group of users; the best of a column is bold, or starred in a file."""
    lines = []
    for group in dict.fromkeys(result["group"] for result in results):
        rows = [result for result in results if result["group"] == group]
        lines += ["", f"{group}: {rows[0]['users']}"]
        if rows[0]["users"]:
            table = group_table(rows, topk)
            lines += [re.sub(r"(\S+)\*", BOLD, line) for line in table] if sys.stdout.isatty() else table
            lines += conclusions(rows, topk[-1])
    print("\n".join(lines), end="\n\n")  # noqa: T201


def conclusions(rows: list[dict[str, Any]], k: int) -> list[str]:
    """What is said below the table of a group: the verdict, and what a method adds to another."""
    said = "{method} over {over}: {difference:+.4f} NDCG@{k}, interval [{low:+.4f}, {high:+.4f}]"
    shares = [{"method": row["method"], "k": k, **row["share"]} for row in rows if "share" in row]
    return [verdict(rows, k), *map(said.format_map, shares)]


def metric_names(topk: list[int]) -> list[str]:
    """The metrics of a table, in the order of its columns."""
    return [f"{metric}@{k}" for metric in ("hit", "ndcg") for k in topk] + ["mrr"]


def by_need(rows: list[dict[str, Any]]) -> dict[str | None, list[dict[str, Any]]]:
    """The rows of a group by what they need, in the order of the table: the model first, under None."""
    ordered = {needs: [row for row in rows if row["needs"] == needs] for needs in (None, *NEEDS)}
    return {needs: listed for needs, listed in ordered.items() if listed}


def against_model(row: dict[str, Any]) -> str:
    """A method's difference to the model and its interval; nothing for the model itself."""
    return "{difference:+.4f} [{low:+.4f}, {high:+.4f}]".format_map(row) if row["needs"] else ""


def group_table(rows: list[dict[str, Any]], topk: list[int]) -> list[str]:
    """The lines of a group's table: the model first, then the others by what they need; a star marks the best."""
    names = metric_names(topk)
    best = {name: max(row[name] for row in rows) for name in names}

    def cells(row: dict[str, Any]) -> list[str]:
        numbers = [f"{row[name]:.4f}" + ("*" if row[name] == best[name] > 0 else " ") for name in names]
        indent = "  " if row["needs"] else ""
        return [indent + row["method"], *numbers, against_model(row)]

    lines = []
    for needs, listed in by_need(rows).items():
        lines += [[needs, *[""] * (len(names) + 1)]] if needs else []
        lines += map(cells, listed)
    return list(table_lines(["method", *(f"{name} " for name in names), f"ndcg@{topk[-1]} vs {MODEL}"], lines))


class Coverage(NamedTuple):
    """Which items the lists of all users have."""

    items: int  # different ones
    most_frequent: float  # the share of the lists that have the item that stands in most of them


def coverage(lists: np.ndarray) -> Coverage:
    """The coverage of lists (U, k) int64 of different items each, -1 where one ends.

    >>> coverage(np.array([[5, 2], [5, 9], [5, -1], [4, 2]]))
    Coverage(items=4, most_frequent=0.75)
    """
    _, counts = np.unique(lists[lists >= 0], return_counts=True)
    return Coverage(len(counts), float(counts.max(initial=0)) / max(1, len(lists)))


def report_coverage(method: str, found: Coverage, candidates: int, k: int) -> None:
    """Print how many of the candidates the lists of k have, and a warning where nearly everyone gets the same."""
    print(  # noqa: T201
        f"{method} recommends {found.items} of {candidates} items in lists of {k}; the most frequent stands in "
        f"{found.most_frequent:.1%} of the lists"
    )
    if warning := coverage_warning(method, found, candidates, k):
        print(warning)  # noqa: T201


def coverage_warning(method: str, found: Coverage, candidates: int, k: int) -> str:
    """What is to be said where nearly everyone gets the same item; nothing otherwise."""
    if found.most_frequent <= SAME or candidates <= FEW * k:
        return ""
    return f"{method} recommends the same item to nearly everyone: it is hardly trained, or fits nobody"


def verdict(rows: list[dict[str, Any]], k: int) -> str:
    """One line that says what the model loses to or beats, and what is best without a log."""
    name = f"ndcg@{k}"
    others = [row for row in rows if row["needs"] and row["method"] != BEST_BLEND]  # which has the model's own part
    best = max(others, key=lambda row: row[name])
    needs = "" if f"({best['needs']})" in best["method"] else f" ({best['needs']})"  # some names say it
    rival, difference, low, high = best["method"] + needs, best["difference"], best["low"], best["high"]
    if np.isnan(low):
        said = f"one user is too few to compare {MODEL} with others"
    elif low > 0:
        said = f"{MODEL} loses to {rival} by {difference:.4f} NDCG@{k}, interval [{low:.4f}, {high:.4f}]"
    elif high < 0:
        said = f"{MODEL} beats all others, {rival} by {-difference:.4f} NDCG@{k}, interval [{-high:.4f}, {-low:.4f}]"
    else:
        said = f"{MODEL} and {rival} are level: {difference:+.4f} NDCG@{k}, interval [{low:.4f}, {high:.4f}]"
    if best["needs"] != NOTHING:
        without = max((row for row in others if row["needs"] == NOTHING), key=lambda row: row[name])
        said += f"; without a log the best is {without['method']}"
    return said
