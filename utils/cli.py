"""What every script needs on its command line: types of flags, settings, exit codes, short errors, and Ctrl-C.

A script's `main` is given to `run`, which turns what the user can mend into one line and exit code 2. What Ctrl-C does
before, during and after that stands under one heading at the end.
"""

import argparse
import contextlib
import dataclasses
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from utils.errors import InputError

BAD_INPUT, INTERRUPTED = 2, 130  # exit codes


# Types of flags


def yes_or_no(text: str) -> bool:
    """argparse type for flags that may be given as `--flag`, `--flag True` or `--flag False`."""
    answers = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in answers:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return answers[text.lower()]


SWITCH = {"nargs": "?", "const": True, "default": False, "type": yes_or_no}  # --name, --name True or --name False


def whole_number(least: int, below: int, range_in_words: str) -> Callable[[str], int]:
    """Make an argparse type for whole numbers from `least` to below `below`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) < below:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {range_in_words}")
        return int(text)

    return parse


positive_int = whole_number(1, 2**63, "of 1 or more")
non_negative_int = whole_number(0, 2**63, "of 0 or more")
seed = whole_number(0, 2**32, f"from 0 to {2**32 - 1}")


def finite_number(fits: Callable[[float], bool], range_in_words: str) -> Callable[[str], float]:
    """Make an argparse type for the finite numbers that `fits` accepts."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not fits(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not a finite number {range_in_words}")
        return value

    return parse


non_negative_float = finite_number(lambda value: value >= 0, "of 0 or more")
positive_float = finite_number(lambda value: value > 0, "above 0")
fraction = finite_number(lambda value: 0 <= value < 1, "from 0 to below 1")
share = finite_number(lambda value: 0 < value <= 1, "above 0 and at most 1")


def named_file(text: str) -> tuple[str, Path]:
    """argparse type for NAME=FILE."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE")
    return name, Path(path)


# Parsers and settings


def parser(script_docstring: str) -> argparse.ArgumentParser:
    """A parser that shows the script's docstring, and every default, in --help."""

    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        def _get_help_string(self, action: argparse.Action) -> str | None:
            return action.help if action.default is None else super()._get_help_string(action)

    made = argparse.ArgumentParser(description=script_docstring, formatter_class=Formatter, allow_abbrev=False)
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def setting(default: Any, text: str, /, **options: Any) -> Any:
    """A field of a settings dataclass that is a flag, too: its default, its help, and options of `add_argument`."""
    return dataclasses.field(default=default, metadata={"default": default, "help": text, **options})


def add_settings(flags: Any, settings: type, names: Sequence[str] = ()) -> None:
    """Add a flag to a parser, or to a group of one, for each field of a settings dataclass, or for some by name."""
    for field in dataclasses.fields(settings):
        if not names or field.name in names:
            flags.add_argument(f"--{field.name}", **field.metadata)


def parse_resumed(
    parse: Callable[..., argparse.Namespace],
    earlier: dict[str, Any],
    fixed: Sequence[str],
    source: Path,
    flag: str = "--resume",
) -> tuple[argparse.Namespace, str]:
    """Parse the command line of a run that resumes: `earlier`, its settings by flag, stand in for what is not typed.

    They come from the file `source`, which `flag` names; `parse` parses with the defaults that it is given by name.

    Returns:
        The flags, and words that list what has changed, to append to a message.

    Raises:
        InputError: a flag of `fixed` is typed otherwise than in `source`.
    """
    args = parse(**earlier)
    changed = {name: (old, vars(args)[name]) for name, old in earlier.items() if vars(args)[name] != old}
    config = vars(args).get("config")  # whose settings count as typed
    for name in filter(changed.get, fixed):
        raise InputError(
            f"--{name} {changed[name][1]} contradicts {source}, which has {changed[name][0]}. Leave the flag out"
            f"{config and f', and {name} out of {config}' or ''}, or start without {flag}."
        )
    listed = ", ".join(f"--{name} {new} (was {old})" for name, (old, new) in changed.items())
    return args, f": {listed}" if listed else ""


# Running a script


def run(main: Callable[[], None]) -> None:
    """Call a script's main function and end the process as its user expects.

    Bad input or usage ends in a message of one or two lines and exit code 2, Ctrl-C in one line, which main may give
    with the KeyboardInterrupt, and exit code 130. An error that nobody expected is a defect: it shows its traceback.
    """
    debug, pressed = "--debug" in sys.argv, []
    try:
        with ctrl_c_recorded(pressed):
            main()
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if pressed or isinstance(error, KeyboardInterrupt):
            traceback.clear_frames(error.__traceback__)  # ends progress bars, so that the message has its own line
            message = str(error) if isinstance(error, KeyboardInterrupt) else ""
            _exit_with(message or "interrupted", INTERRUPTED, debug)
        if isinstance(error, BrokenPipeError):
            # The reader of our output is gone (`| head`): there is nothing to print, and nothing more to flush.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(BAD_INPUT)
        if not isinstance(error, (InputError, OSError)):
            raise
        _exit_with(f"error: {error}", BAD_INPUT, debug)


def _exit_with(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(message, file=sys.stderr)
    sys.exit(code)


# Ctrl-C


def end_at_ctrl_c() -> None:
    """From here on Ctrl-C ends the process at once, in one line: while a script imports, and after `run`."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


@contextlib.contextmanager
def ctrl_c_recorded(pressed: list[bool]) -> Iterator[None]:
    """Raise KeyboardInterrupt at Ctrl-C, and append to `pressed`, because some libraries raise another error then."""

    def record(number: int, frame: FrameType | None) -> None:
        pressed.append(True)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, record)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def hold_ctrl_c() -> Iterator[None]:
    """Hold Ctrl-C back until the end of the block, so that files that belong together are all written."""
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed and callable(before):
        before(signal.SIGINT, None)
