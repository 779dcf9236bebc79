"""Fitted blends as small JSON files: beside a data set, and the one shipped for domains without a log."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from utils.blend import (
    FEATURES,
    KINDS,
    NETWORK,
    NO_LOG,
    WITH_LOG,
    WITH_NETWORK,
    WITHOUT_LOG,
    Blend,
    Blender,
    Domain,
    Fitted,
    fit_to_log,
)
from utils.compare import BEST_BLEND, LOG_BLEND, NO_LOG_BLEND
from utils.data import Sequences
from utils.datasets import HISTORIES, TestSet
from utils.errors import InputError, shown
from utils.files import check_writable, content, read_json, require_file, save_json
from utils.scores import Statistics
from utils.whitening import are_whitened

VERSION = 2  # 1 had no eras
SHIPPED = Path(__file__).with_name("blend_default.json")  # benchmarks/default_blend.py makes it
LARGEST = 1e6  # of a weight or scale
REMEDY = "predict.py --blend fits it again."


def origin_of_fit(test: TestSet, made_with: dict[str, str], exclude_history: bool) -> dict[str, Any]:
    """What weights that are fitted to a data set's log depend on, by name.

    Of few items that texts are compared as they are is noted, too: weights from when they were whitened are no use.
    """
    log = test.embeddings_path.parent / HISTORIES
    texts = {} if are_whitened(*test.embeddings.shape) else {"texts": "as they are"}
    files = {HISTORIES: content(log), "embeddings": content(test.embeddings_path), **texts}
    return {**files, **made_with, "exclude_history": exclude_history}


def make_blenders(
    test: TestSet,
    known: Statistics,
    candidates: np.ndarray,
    codes: np.ndarray,
    made_with: dict[str, str],
    network: Callable[[Sequences], Tensor],
    choice: str,
    exclude_history: bool,
) -> dict[str, Blender]:
    """The blends that a data set allows, by the names of their rows (BLENDS of utils/compare.py).

    Args:
        test: the data set.
        known: statistics of its catalog and log.
        candidates: (M,) int64 ids of the items that may be recommended.
        codes: (N, K) int16.
        made_with: hashes of the weights and the tokenizer, on which a fit depends.
        network: RecGPT's log-probabilities, (B, N) float32, of all items after B histories.
        choice: "auto", "fit" or a file, as in predict.py --blend.
        exclude_history: a user's own items are not recommended.
    """
    shipped = load_blends(SHIPPED)[NO_LOG]
    blends = {NO_LOG_BLEND: Blender(shipped, Domain(known.rows), candidates, exclude_history=exclude_history)}
    if test.log is None:
        print("there is no train.pkl: the blend has the weights of the program, which were fitted on other domains")  # noqa: T201
        return blends
    folder, mode = test.embeddings_path.parent, choice if choice in ("auto", "fit") else "read"
    path = Path(choice) if mode == "read" else folder / "blend.json"
    made_from = origin_of_fit(test, made_with, exclude_history)
    fit = partial(fit_to_log, test.log, known.rows, candidates, exclude_history, network)
    fitted, domain = obtain_blends(path, mode, made_from, fit, (WITH_LOG, WITH_NETWORK)), Domain.of(known)
    for row, name in ((LOG_BLEND, WITH_LOG), (BEST_BLEND, WITH_NETWORK)):
        blends[row] = Blender(fitted[name], domain, candidates, codes, exclude_history)
    return blends


def obtain_blends(
    path: Path,
    mode: str,
    made_from: dict[str, Any],
    fit: Callable[[], dict[str, Fitted]],
    names: tuple[str, ...] = (),
) -> dict[str, Blend]:
    """Read the blends of a file that were made from the files at hand, or fit them and write them there.

    Args:
        path: DATASET/blend.json, or a file that somebody named.
        mode: "read": InputError if the file does not fit; "fit": fit in any case; "auto": fit if it does not fit.
        made_from: names and hashes of what the weights depend on.
        fit: called without arguments, fits them.
        names: of the blends that must be there.
    """
    if mode == "read" or (mode == "auto" and path.is_file()):
        try:
            return load_blends(path, made_from, names)
        except InputError as error:
            if mode == "read":
                raise
            print(f"fitting the blend anew: {str(error).removesuffix(f' {REMEDY}')}")  # noqa: T201
    check_writable(path)
    started = time.perf_counter()
    fitted = fit()
    save_blends(path, fitted, made_from)
    seconds = time.perf_counter() - started
    for name, (blend, users, before, after) in fitted.items():
        weights = ", ".join(f"{feature} {weight:.2f}" for feature, weight in blend.weights.items())
        print(  # noqa: T201
            f"blend ({name}) fitted to the last items of {users} users of train.pkl, {before:.3f} to {after:.3f} nats "
            f"each: {weights}"
        )
    print(f"{path} written after {seconds:.1f} s")  # noqa: T201
    return {name: one.blend for name, one in fitted.items()}


def save_blends(path: Path, blends: dict[str, Fitted], made_from: dict[str, Any]) -> None:
    """Write fitted blends by name, and what they were made from: hashes of files, settings."""
    listed = {
        name: {"weights": fitted.blend.weights, "scales": fitted.blend.scales}
        | {"users": fitted.users, "log_likelihood": {"before": fitted.before, "after": fitted.after}}
        for name, fitted in blends.items()
    }
    save_json(path, {"version": VERSION, "made_from": made_from, "blends": listed})


def load_blends(path: Path, made_from: dict[str, Any] | None = None, names: tuple[str, ...] = ()) -> dict[str, Blend]:
    """Read the blends of a file, by name.

    Args:
        path: a file that `save_blends` wrote.
        made_from: what the blends must have been made from; None: anything.
        names: of the blends that must be there.

    Raises:
        InputError: no file, a damaged one, one of another version, or blends made from something else.
    """
    saved = read_json(require_file(path, REMEDY))
    if saved.get("version") != VERSION:
        raise InputError(f"{path} is of version {shown(saved.get('version'))}, expected {VERSION}. {REMEDY}")
    known, blends = saved.get("made_from"), saved.get("blends")
    if not isinstance(known, dict) or not isinstance(blends, dict) or not blends or not set(blends) <= set(KINDS):
        raise InputError(f'{path}: expected "made_from" and "blends" with names among {KINDS}. {REMEDY}')
    if made_from is not None and known != made_from:
        other = [name for name in {**known, **made_from} if known.get(name) != made_from.get(name)]
        raise InputError(f"{path} was fitted with another {' and '.join(map(shown, other))}. {REMEDY}")
    if missing := [name for name in names if name not in blends]:
        raise InputError(f"{path} has no blend {shown(missing[0])}. {REMEDY}")
    return {name: _blend(saved, name, f"{path}, blend {shown(name)}") for name, saved in blends.items()}


def _blend(saved: Any, kind: str, owner: str) -> Blend:
    """The blend of a JSON object; InputError unless its names are features of its kind and its numbers finite."""
    features = set(FEATURES) if kind == WITH_NETWORK else set(FEATURES) - {NETWORK}
    features = set(WITHOUT_LOG) if kind == NO_LOG else features
    sides = [saved.get(side) if isinstance(saved, dict) else None for side in ("weights", "scales")]
    if not all(isinstance(side, dict) for side in sides) or sides[0].keys() != sides[1].keys() or not sides[0]:
        raise InputError(f"{owner}: expected weights and scales of the same features. {REMEDY}")
    for side in sides:
        for name, value in side.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if name not in features or not number or not abs(value) <= LARGEST:  # nor NaN
                raise InputError(f"{owner}: found {shown(name)}: {shown(value)}, expected numbers by feature. {REMEDY}")
    if min(sides[1].values()) <= 1 / LARGEST:
        raise InputError(f"{owner}: a scale must be above {1 / LARGEST:g}, found {min(sides[1].values())}. {REMEDY}")
    return Blend(*sides)
