"""The page of predict.py --report: what was evaluated, metrics, who is served well, coverage, codes, examples.

Its figures are those that predict.py prints (utils/compare.py). It holds nothing of single users but of ten examples.
"""

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from utils import compare
from utils.checkpoint import ITEMS
from utils.compare import BEST_BLEND, LOG_BLEND, MODEL, NO_LOG_BLEND, REPEATED
from utils.data import Sequences
from utils.datasets import TestSet
from utils.errors import shown
from utils.files import atomic_write
from utils.fsq import Codebook, sharing
from utils.metrics import Ranks
from utils.names import Names
from utils.page import Bar, Html, chart, element, join, name, page, shortened, table
from utils.scores import places

FILE = "report.html"
LENGTHS = (1, 2, 3, 5, 10, 20, 50, 100)  # items of the history: where each group of users begins
COUNTS = (0, 1, 5, 20, 100, 500, 2_500)  # the same of how often the log has the target
FEWEST = 30  # users: of fewer no interval is shown
RANKINGS = {NO_LOG_BLEND: "text", LOG_BLEND: "log", MODEL: "model", BEST_BLEND: "blend"}  # --rank_by, least need first
EXAMPLES, RECENT, TOP = 10, 5, 5  # users, items of their histories, and of their lists


class Measured(NamedTuple):
    """What was measured, as compare.measure reads and returns it."""

    ranks: dict[str, Ranks]  # by method, of U users
    needs: dict[str, str]  # what each method but the model needs
    groups: dict[str, np.ndarray]  # masks (U,) bool; the first has everyone who is counted
    topk: list[int]
    results: list[dict[str, Any]]


class Listed(NamedTuple):
    """What was recommended."""

    lists: dict[str, Tensor]  # (U, k) int64 items of the methods whose coverage is told
    candidates: int  # items that may be recommended
    method: str  # whose lists --output has
    shown: Tensor  # (U, k) int64, these lists


@dataclass(frozen=True)
class Evaluation:
    """What predict.py has found about U users and a catalog of N items."""

    setting: dict[str, Any]  # what was evaluated, by the names of flags, and what the checkpoint predicts
    test: TestSet
    codes: np.ndarray  # (N, K) int16
    codebook: Codebook
    measured: Measured
    listed: Listed

    @cached_property
    def split(self) -> tuple[Sequences, np.ndarray]:
        """The histories without the targets, and the targets (U,)."""
        return self.test.sequences.split_targets()

    @cached_property
    def gains(self) -> np.ndarray:
        """The main metric of the model for every user, (U,) float64."""
        return compare.user_gains({MODEL: self.measured.ranks[MODEL]}, self.measured.topk)[MODEL]

    @property
    def main(self) -> str:
        """The metric of the bars."""
        return f"ndcg@{self.measured.topk[-1]}"

    @property
    def counted(self) -> np.ndarray:
        """Who belongs to the first group, (U,) bool."""
        return next(iter(self.measured.groups.values()))

    def rows(self, group: str) -> list[dict[str, Any]]:
        """The results of a group."""
        return [result for result in self.measured.results if result["group"] == group]


def report_path(folder: str | None) -> Path | None:
    """The file of --report, where it is given."""
    return None if folder is None else Path(folder) / FILE


def write_report(folder: str | None, found: Evaluation, names: Names | None) -> None:
    """Write the page to the folder of --report, if given, with the names of items; DiskError if that fails."""
    if folder is None or names is None:
        return
    path = report_path(folder)
    parts = (
        in_short(found),
        settings(found),
        metrics(found),
        divisions(found),
        coverage(found),
        codes(found),
        examples(found, names),
    )
    with atomic_write(path, "w") as file:
        file.write(page(f"RecGPT on {found.test.embeddings_path.parent.resolve().name}", *parts))
    print(f"wrote {path}")  # noqa: T201


def paragraph(*parts: Any, class_: str | None = None) -> Html:
    """A paragraph."""
    return element("p", *parts, **({"class_": class_} if class_ else {}))


# What to do


def in_short(found: Evaluation) -> Html:
    """How many users were served, in words, and by what a bundle should rank; nothing for a few users."""
    rows = {row["method"]: row for row in found.rows(next(iter(found.measured.groups)))}
    users, k = rows[MODEL]["users"], found.measured.topk[-1]
    if users < FEWEST:
        return Html()
    best = max((name for name in RANKINGS if name in rows), key=lambda name: rows[name][found.main])
    methods = dict.fromkeys((best, MODEL, *(name for name in ("popularity", "nearest text") if name in rows)))
    served = [f"{round(users * rows[name][f'hit@{k}'])} by {name}" for name in methods]
    said = [paragraph(f"Of {users} users, so many have their next item among {k} items: {', '.join(served)}.")]
    level = simplest(found, best)
    advice = f"Best of what a bundle can rank by is {best}"
    if level != best:
        advice += f", and {level} is level with it and needs less"
    flags = f"--rank_by {RANKINGS[level]} --dataset {found.setting['dataset']} --output my_bundle"
    if level in (MODEL, BEST_BLEND):
        flags += f" --ckpt_path {found.setting['ckpt_path']} --vae_ckpt {found.setting['vae_ckpt']}"
    command = element("code", f"python -m serving.bundle {flags}")
    said.append(paragraph(f"{advice}: ", command, "."))
    if not found.setting["exclude_history"]:
        said.append(paragraph("A bundle leaves out what is in a history. Measure that with --exclude_history."))
    return join([element("h2", "In short"), *said], "\n")


def simplest(found: Evaluation, best: str) -> str:
    """The first of what a bundle can rank by, from what needs least, that is not worse than the best beyond chance."""
    ranks = {name: found.measured.ranks[name] for name in RANKINGS if name in found.measured.ranks}
    gains = compare.user_gains(ranks, found.measured.topk)
    differences = np.array([(gains[best] - own)[found.counted] for own in gains.values()])
    bounds = zip(gains, compare.intervals(differences), strict=True)
    return next(name for name, interval in bounds if name == best or interval["low"] <= 0)


# What was evaluated


def settings(found: Evaluation) -> Html:
    """What was evaluated, and how."""
    log, left_out = found.test.log, int((~found.counted).sum())
    users = f"{len(found.split[1])}{' of cold_test.pkl, who have one to three items' if found.setting['cold'] else ''}"
    facts = {
        "data set": found.setting["dataset"],
        "users": users + (f"; {left_out} are left out: their target is in their history" if left_out else ""),
        "items": f"{len(found.codes)}, of which {found.listed.candidates} can be recommended",
        "log": f"train.pkl, {len(log)} histories with {len(log.items)} items" if log else "none",
        "checkpoint": f"{found.setting['ckpt_path']}, which predicts {found.setting['predicts']}",
        "protocol": found.setting["protocol"],
        "search": found.setting["search"],
        "items of the history": "left out" if found.setting["exclude_history"] else "may be recommended",
        "date": datetime.date.today().isoformat(),
    }
    return table([], [(None, [[fact, value] for fact, value in facts.items()])], "left")


# Metrics


def metrics(found: Evaluation) -> Html:
    """Bars of the main metric, and the tables of all groups as they are printed."""
    first, *others = found.measured.groups
    k = found.measured.topk[-1]
    said = paragraph(
        f"NDCG@{k} of a user is 1 where the next item is recommended first, less the later it stands, and 0 behind "
        f"place {k}. The bars are the means of the first table below ({first})."
    )
    tables, told = [group_table(found, first)], [first]
    for group in others:
        if any(np.array_equal(found.measured.groups[group], found.measured.groups[other]) for other in told):
            continue  # the same users by another name
        told.append(group)
        summary = element("summary", f"The same table for other users: {group}")
        tables.append(element("details", summary, group_table(found, group)))
    bars = all_bars(found, first)
    return join([element("h2", f"NDCG@{k} and other metrics"), said, bars, *tables], "\n")


def all_bars(found: Evaluation, group: str) -> Html:
    """A bar for each method, by what it needs."""
    rows = found.rows(group)
    if not rows[0]["users"]:
        return Html()
    bars = bars_of(found, rows, found.counted)
    sections = [
        (needs and f"needs {needs}", [bars[row["method"]] for row in listed])
        for needs, listed in compare.by_need(rows).items()
    ]
    explained = paragraph(
        "The dashed line is where the bar of RecGPT ends. Whiskers are 95 % intervals: for RecGPT of its own mean, for "
        "every other row of its difference to RecGPT for the same users. Where a whisker crosses the line, the two are "
        f"level{too_few(rows[0]['users'])}.",
        class_="faint",
    )
    return join([chart(sections), explained], "\n")


def too_few(users: int) -> str:
    """What is said where so many users are too few."""
    return f"; fewer than {FEWEST} users are too few for an interval" if users < FEWEST else ""


def bars_of(found: Evaluation, rows: list[dict[str, Any]], members: np.ndarray) -> dict[str, Bar]:
    """A bar for each row of results for the users `members`, (U,) bool, by method; no whiskers for a few users."""
    model = next(row for row in rows if row["method"] == MODEL)[found.main]
    (own,) = compare.intervals(found.gains[None, members])
    bars = {}
    for row in rows:
        is_model, enough = row["method"] == MODEL, row["users"] >= FEWEST
        low, high = (own["low"], own["high"]) if is_model else (model + row["low"], model + row["high"])
        note = "[{low:.4f}, {high:.4f}]".format_map(own) if is_model else compare.against_model(row)
        bounds = (low, high, note) if enough else (np.nan, np.nan, "")
        bars[row["method"]] = Bar(row["method"], row[found.main], *bounds, is_model)
    return bars


def group_table(found: Evaluation, group: str) -> Html:
    """The table of a group as it is printed: the best of a column is bold; conclusions stand below."""
    rows = found.rows(group)
    users = element("h3", f"{group}: {rows[0]['users']}")
    if not rows[0]["users"]:
        return users
    columns = compare.metric_names(found.measured.topk)
    best = {column: max(row[column] for row in rows) for column in columns}

    def cells(row: dict[str, Any]) -> list[Any]:
        numbers = [(f"{row[column]:.4f}", row[column] == best[column] > 0) for column in columns]
        return [row["method"], *(element("b", said) if bold else said for said, bold in numbers), against(row)]

    def against(row: dict[str, Any]) -> str:
        return compare.against_model(row) if row["users"] > 1 else ""

    sections = [(needs, list(map(cells, listed))) for needs, listed in compare.by_need(rows).items()]
    said = map(paragraph, compare.conclusions(rows, found.measured.topk[-1]))
    return join([users, table(["method", *columns, f"{found.main} vs {MODEL}"], sections), *said], "\n")


# Who is served well


def divisions(found: Evaluation) -> Html:
    """The main metric by groups of users, for the model and the best of the others."""
    if not found.counted.any():
        return Html()
    methods = leaders(found)
    ranks = {method: found.measured.ranks[method] for method in methods}
    parts = [
        element("h2", f"{found.main.upper()} by groups of users"),
        paragraph(
            "RecGPT beside the best of the other rows, for each thing that these need, by all users who are counted. "
            "Lines and whiskers are as above."
        ),
    ]
    for title, groups in divided(found).items():
        parts.append(element("h3", title))
        results = compare.measure(ranks, found.measured.needs, groups, found.measured.topk)
        parts.append(chart([division(found, results, label, groups[label]) for label in groups]))
    if found.test.log is None:
        parts.append(paragraph("There is no log (train.pkl), so that nothing is known about how popular items are."))
    return join(parts, "\n")


def leaders(found: Evaluation) -> list[str]:
    """The model, the blend with it, and the best of the others for each thing that methods need."""
    rows = found.rows(next(iter(found.measured.groups)))
    methods = [MODEL, BEST_BLEND] if BEST_BLEND in found.measured.ranks else [MODEL]
    for listed in compare.by_need([row for row in rows if row["method"] not in methods]).values():
        methods.append(max(listed, key=lambda row: row[found.main])["method"])
    return methods


def divided(found: Evaluation) -> dict[str, dict[str, np.ndarray]]:
    """Groups of those who are counted, (U,) bool, by title and label."""
    divisions = {"Items of the history": buckets(found.split[0].lengths, LENGTHS)}
    if found.test.log is not None:
        counts = np.bincount(found.test.log.items, minlength=len(found.codes))
        divisions["How often the log has the target"] = buckets(counts[found.split[1]], COUNTS)
    if not found.setting["exclude_history"]:
        repeated = {label: found.measured.groups[label] for label in REPEATED}
        divisions["Whether the target is in the history"] = repeated

    def counted(groups: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        kept = {label: members & found.counted for label, members in groups.items()}
        return {label: members for label, members in kept.items() if members.any()}

    return {title: counted(groups) for title, groups in divisions.items()}


def buckets(values: np.ndarray, starts: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Who has (U,) `values` from each start to before the next, (U,) bool.

    >>> buckets(np.array([1, 4, 3, 9]), (1, 2, 3, 5))["3 to 4"].tolist()
    [False, True, True, False]
    >>> list(buckets(np.array([1, 4, 3, 9]), (1, 2, 3, 5)))
    ['1', '2', '3 to 4', '5 or more']
    """
    found = np.searchsorted(starts, values, side="right") - 1
    labels = [str(low) if low == end - 1 else f"{low} to {end - 1}" for low, end in pairwise(starts)]
    labels.append(f"{starts[-1]} or more")
    return {label: found == number for number, label in enumerate(labels)}


def division(
    found: Evaluation, results: list[dict[str, Any]], label: str, members: np.ndarray
) -> tuple[str, list[Bar]]:
    """A section of a chart for the users `members`, (U,) bool, from the results of all such groups."""
    rows = [result for result in results if result["group"] == label]
    users = rows[0]["users"]
    said = f"{label}: {users} {'user' if users == 1 else 'users'}{too_few(users)}"
    return said, list(bars_of(found, rows, members).values())


# Coverage


def coverage(found: Evaluation) -> Html:
    """Which items the lists have, with the warning that is printed."""
    k = next(iter(found.listed.lists.values())).shape[1]
    header = ["method", f"items, of {found.listed.candidates}", "most frequent", "new to the user", "not in the log"]
    rows, warnings = [], []
    for method, tensor in found.listed.lists.items():
        lists = tensor.numpy()
        covered = compare.coverage(lists)
        rows.append([method, str(covered.items), f"{covered.most_frequent:.1%}", *novelty(found, lists)])
        warnings.append(compare.coverage_warning(method, covered, found.listed.candidates, k))
    said = paragraph(
        f"How many different items all lists of {k} have together; in what share of the lists the most frequent one "
        "stands; and what share of all recommended items is not in the user's history, or in no history of the log."
    )
    warned = [paragraph(warning, class_="warning") for warning in warnings if warning]
    return join([element("h2", "Coverage"), said, table(header, [(None, rows)]), *warned], "\n")


def novelty(found: Evaluation, lists: np.ndarray) -> tuple[str, str]:
    """The shares of the items of lists (U, k) that are not in the user's history, and that the log has never seen."""
    items = len(found.codes)
    user, place = np.nonzero(lists >= 0)
    listed = lists[user, place]
    if not len(listed):
        return "-", "-"
    histories, _ = found.split
    had = np.sort(places(histories)[0] * items + histories.items)
    pairs = user * items + listed
    at = np.searchsorted(had, pairs).clip(max=len(had) - 1)  # np.isin takes a hundred times as long
    new = f"{np.mean(had[at] != pairs):.1%}"
    if found.test.log is None:
        return new, "no log"
    known = np.zeros(items, dtype=bool)
    known[found.test.log.items] = True
    return new, f"{1 - known[listed].mean():.1%}"


# Codes


def codes(found: Evaluation) -> Html:
    """How much of the codebook the catalog uses, and how many items share all their codes."""
    used = found.codes[np.any(found.test.embeddings, axis=1)]  # (n, K) of the items with text
    counts = [np.count_nonzero(np.bincount(column)) for column in used.T]
    rows = [
        [f"code {place}", str(count), f"{count / found.codebook.size:.1%}"] for place, count in enumerate(counts, 1)
    ]
    said = f"{sharing(used)} of {len(used)} items with text share all their codes with another."
    if found.setting["predicts"] == ITEMS:
        said += " The checkpoint predicts items, and tells these apart by their texts."
    header = ["", f"values in use, of {found.codebook.size}", "share"]
    return join([element("h2", "Codes"), paragraph(said), table(header, [(None, rows)])], "\n")


# Examples


def examples(found: Evaluation, names: Names) -> Html:
    """Ten users, evenly spaced over those who are counted in the order of the data set."""
    counted = np.flatnonzero(found.counted)
    rows = counted[np.unique(np.linspace(0, len(counted) - 1, min(EXAMPLES, len(counted))).round().astype(int))]
    said = paragraph(
        f"What {found.listed.method} recommends to {len(rows)} of {len(counted)} users. They are evenly spaced over "
        "the data set, from its first user to its last, and not chosen by how well they are served."
    )
    users = [example(found, names, row) for row in rows.tolist()]
    return join([element("h2", "Examples"), said, element("div", *users, class_="users")], "\n")


def example(found: Evaluation, names: Names, row: int) -> Html:
    """A user's last items, the target with its rank, and the beginning of the list."""
    histories, targets = found.split
    user, target, history = found.test.sequences.users[row], int(targets[row]), histories.select([row]).items.tolist()
    listed, ranks = found.listed.shown[row].tolist(), found.measured.ranks[found.listed.method]
    above, tied = int(ranks.above[row]), int(ranks.tied[row])
    rank = f"rank {above + (tied + 1) / 2:.1f}".removesuffix(".0") if tied else f"not among the first {len(listed)}"
    recent = f"The last {RECENT} of {len(history)} items" if len(history) > RECENT else "All items of the history"
    parts = [
        element("h3", "User ", name(user if isinstance(user, str) else shown(user))),
        paragraph(f"{recent}, the latest at the end:"),
        element("ul", *(element("li", called(names, item)) for item in history[-RECENT:])),
        paragraph("The next item was ", called(names, target), ": ", element("b", rank), "."),
        paragraph("Recommended:"),
        element("ol", *recommended(names, listed[:TOP], target)),
    ]
    return element("section", *parts)


def recommended(names: Names, listed: list[int], target: int) -> Iterator[Html]:
    """The lines of a list; the target is bold."""
    for item in listed:
        if item >= 0:
            line = called(names, item)
            yield element("li", element("b", line, " (the next item)") if item == target else line)


def called(names: Names, item: int) -> Html:
    """The title of an item, and its id."""
    identifier = element("small", name(names.ids[item]))
    title = names.titles[item]
    return join([name(title) if shortened(title) else "item", identifier], " ")
