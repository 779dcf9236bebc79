"""Which settings results must share to be averaged as seeds of one kind."""

from collections.abc import Mapping
from typing import Any

# Of a training, what seeds may differ in: the seed, where files are, and what the run has come to.
PATHS = ("data_path", "eval_path", "log_file", "refit_of")
OUTCOMES = ("step", "loss", "best", "starts", "time", "weights", "format")
BY_DATA = ("histories", "tokenizer", "encoder", "targets_of")  # follow from the fingerprint "data"
OF_A_RUN = {"seed", *PATHS, *OUTCOMES, *BY_DATA}
EVALUATION = ("cold", "protocol", "search", "exclude_history")  # of a row of predict.py
OF_USERS = ("settings.drop_short", "fingerprints.eval.pkl")  # whom it is about, beside dataset and group


def shared_settings(training: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a training in which all runs of one kind agree.

    >>> shared_settings({"seed": 1, "lr": 0.1, "max_steps": 70, "refit_of": "ckpt/best.pt"})
    {'lr': 0.1}
    """
    found = {name: value for name, value in training.items() if name not in OF_A_RUN}
    if training.get("refit_of"):  # it takes as many steps as the other run took to its best
        found.pop("max_steps", None)
    return found
