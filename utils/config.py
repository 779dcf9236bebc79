"""Settings in a file of TOML: read for --config as strictly as flags are, and written as a run has used them.

    predict = "items"
    lr = 1e-3
    save_last = true

A key is the name of a flag. A setting that is absent has its default, which is how one without a value is written.
"""

import argparse
import dataclasses
import difflib
import json
import tomllib
import typing
from pathlib import Path
from typing import Any

from utils.errors import InputError, reason, shown
from utils.files import atomic_write, require_file

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes"}
ONLY_TYPED = ("config", "debug", "resume")  # flags that say how one start is made, not what is trained
MOST_TOLD = 5  # problems of one file that a message lists
HEADER = "# The settings of a run, as it used them; `python pre_train.py --config FILE` trains with them again.\n"


def read_settings(path: str | Path, settings: type) -> dict[str, Any]:
    """Read the file of --config: the values of some of the flags that are fields of a settings dataclass.

    Raises:
        InputError: no such file, no TOML, or settings that their flags refuse, all of them told together.
    """
    path = require_file(path, "Give --config a file of settings, such as configs/small_cpu.toml.")
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f'{path} is not readable TOML ({reason(error)}). Write lines such as lr = 1e-3 or predict = "items".'
        ) from error
    flags = {field.name: field for field in dataclasses.fields(settings)}
    values, problems = {}, []
    for name, value in found.items():
        try:
            values[name] = parse_value(name, value, flags)
        except argparse.ArgumentTypeError as error:
            problems.append(reason(error))
    if problems:
        more = f"; and {len(problems) - MOST_TOLD} more" if len(problems) > MOST_TOLD else ""
        raise InputError(
            f"{path}: {'; '.join(problems[:MOST_TOLD])}{more}. Mend or remove what is named; --help lists all settings."
        )
    return values


def parse_value(name: str, value: Any, flags: dict[str, dataclasses.Field]) -> Any:
    """Give the value of one setting as its flag would, from what TOML has for it.

    ArgumentTypeError if the flag would refuse it.
    """
    if isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{shown(name)} is a table, and settings stand outside of tables")
    if name in ONLY_TYPED:
        raise argparse.ArgumentTypeError(f"{name} stands in the file, and is only taken where it is typed, as --{name}")
    if name not in flags:
        near = difflib.get_close_matches(name[:60].strip("-").replace("-", "_"), flags, n=1)
        raise argparse.ArgumentTypeError(f"{shown(name)} is no setting{f' ({near[0]} is)' if near else ''}")
    kind, options = kind_of(flags[name]), flags[name].metadata
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise argparse.ArgumentTypeError(f"{name} is {shown(value)}, and should be {KINDS[kind]}")
    if kind is str and "\0" in value:  # which nobody can type
        raise argparse.ArgumentTypeError(f"{name} is {shown(value)}, with a NUL character in it")
    if value not in options.get("choices", (value,)):
        choices = ", ".join(options["choices"])
        raise argparse.ArgumentTypeError(f"{name} is {shown(value)}, and should be one of {choices}")
    try:
        return options.get("type", str)(str(value))
    except (argparse.ArgumentTypeError, ValueError) as error:  # a ValueError of numbers too long to write
        raise argparse.ArgumentTypeError(f"{name}: {error}") from error


def kind_of(flag: dataclasses.Field) -> type:
    """Type of a setting's values: int of a field for `int` or `int | None`."""
    return (typing.get_args(flag.type) or (flag.type,))[0]


def save_settings(path: str | Path, values: dict[str, Any]) -> None:
    """Write settings as TOML, atomically."""
    with atomic_write(path, "w") as file:
        file.write(HEADER + to_toml(values))


def to_toml(values: dict[str, bool | int | float | str | None]) -> str:
    """Lines of TOML for settings by name, without those that are None: TOML has no word for it."""
    return "".join(f"{name} = {toml_value(value)}\n" for name, value in values.items() if value is not None)


def toml_value(value: bool | int | float | str) -> str:
    """One value in TOML, which writes texts as JSON does, but for the character DEL, and numbers as Python does."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value).lower()  # True, and inf
