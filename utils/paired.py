"""Tests of paired differences: over seeds, and over users by the ranks that predict.py --per_user writes."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats

from utils.errors import InputError, reason, shown
from utils.files import fingerprint, limited_memory
from utils.metrics import Ranks, user_metrics

CONFIDENCE = 0.95
LEVEL = 1e-12  # differences that vary by no more than this share of the largest do so by rounding only
UNPACKED = 1 << 30  # bytes that the arrays of one file may take
RANKED = re.compile(r"(hit|ndcg)@([0-9]{1,9})|mrr")  # metrics that follow from a user's rank
AGAIN = "Rank again with --per_user (predict.py), or remove the row."


class Difference(NamedTuple):
    """The mean of paired differences, the bounds of its 95 % interval, and how likely so large a one is by chance."""

    mean: float
    low: float
    high: float
    p: float  # two-sided


def paired_t(differences: np.ndarray) -> Difference | None:
    """Student's paired t of differences (n,) float; None for fewer than two, or where they do not vary.

    >>> found = paired_t(np.array([1.0, 2.0, 3.0]))
    >>> [round(number, 3) for number in found]
    [2.0, -0.484, 4.484, 0.074]
    """
    count = len(differences)
    if count < 2 or np.ptp(differences) <= LEVEL * np.abs(differences).max():
        return None
    mean, error = differences.mean(), differences.std(ddof=1) / np.sqrt(count)
    reach = error * stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)
    p = 2 * stats.t.sf(abs(mean) / error, count - 1)
    return Difference(float(mean), float(mean - reach), float(mean + reach), float(p))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction of several tests: the p of each, so that all below 0.05 have one error in 20 together.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(ps, kind="stable")
    steps = np.arange(len(ps), 0, -1) * np.asarray(ps, dtype=float)[order]
    corrected = np.empty(len(ps))
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps))
    return corrected.tolist()


class Users(NamedTuple):
    """What each user of a row's group gets by its method."""

    names: np.ndarray  # (U,)
    values: np.ndarray  # (U,) float64


def user_values(row: Mapping[str, Any], beside: Path, metric: str) -> Users | None:
    """The metric of each user in the file that a row names as `per_user`; None for no file or no such metric.

    Args:
        row: of `--results`.
        beside: the file of the row, in whose folder the file of users is looked for, too.
        metric: hit@K, ndcg@K or mrr, one that the row has, as K must not be above its largest.

    Raises:
        InputError: a file that is damaged, is not the one that the row was written with, or lacks method or group.
    """
    kind, name = RANKED.fullmatch(metric), row.get("per_user")
    if not kind or not isinstance(name, str) or metric not in row:
        return None
    path = next((path for path in (Path(name), beside.parent / Path(name).name) if path.is_file()), None)
    if path is None:
        return None
    hashes = row.get("fingerprints")
    if isinstance(hashes, dict) and hashes.get("per_user") != fingerprint(path):
        raise InputError(f"{path} is not the file that {beside} names as per_user: it was written again. {AGAIN}")
    method, group = row.get("method"), row.get("group")
    above, tied, members, names = arrays_of(path, f"above: {method}", f"tied: {method}", f"group: {group}", "users")
    if not above.shape == tied.shape == members.shape == names.shape or members.dtype != bool:
        raise InputError(f"{path} does not hold one rank for each user. {AGAIN}")
    ks = [int(key.partition("@")[2]) for key in row if re.fullmatch(r"hit@[0-9]{1,9}", key)]
    k = int(kind[2]) if kind[2] else max(ks, default=1)
    try:
        ranks = Ranks(torch.from_numpy(above[members]), torch.from_numpy(tied[members]))
        columns = user_metrics(ranks, [k]) if members.any() else torch.empty(0, 3)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise InputError(f"{path} does not hold ranks ({reason(error)}). {AGAIN}") from error
    return Users(names[members], columns[:, ("hit", "ndcg", None).index(kind[1])].double().numpy())


@lru_cache(maxsize=64)
def arrays_of(path: Path, *names: str) -> list[np.ndarray]:
    """Read arrays (U,) of a `.npz` by name; InputError if one is missing or the file is damaged."""
    try:
        with limited_memory(UNPACKED), np.load(path, allow_pickle=False) as saved:
            missing = [name for name in names if name not in saved.files]
            arrays = [saved[name] for name in names if name in saved.files]
    except Exception as error:  # a damaged zip or header may raise nearly anything
        raise InputError(f"{path} is not a whole .npz of arrays ({reason(error)}). {AGAIN}") from error
    if missing:
        raise InputError(f"{path} has no array {shown(missing[0])}. {AGAIN}")
    if any(array.ndim != 1 for array in arrays):
        raise InputError(f"{path} holds {shown(names[0])} that is no list. {AGAIN}")
    return arrays


def mean_differences(pairs: Sequence[tuple[Users, Users]], what: str) -> np.ndarray:
    """Differences of users' values (U,) float64, the first of each pair less the second, averaged over the pairs.

    InputError if they are of other users; `what` names them.
    """
    for one in (users for pair in pairs for users in pair):
        if not np.array_equal(one.names, pairs[0][0].names):
            raise InputError(f"{what}: the files of --per_user have other users. Compare rows of the same users.")
    return np.mean([first.values - second.values for first, second in pairs], axis=0)
