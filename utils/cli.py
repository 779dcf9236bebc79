"""What the scripts share on the command line: flags of one meaning everywhere, errors without tracebacks, Ctrl-C."""

import argparse
import contextlib
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

BAD_INPUT = 2  # exit code
DEFECT = 1

INTERRUPTED = 130  # exit code


def yes_or_no(text: str) -> bool:
    """argparse type for flags that may be given as `--flag`, `--flag True` or `--flag False`."""
    answers = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in answers:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return answers[text.lower()]


SWITCH = {"nargs": "?", "const": True, "default": False, "type": yes_or_no}  # --name, --name True or --name False


def positive_int(text: str) -> int:
    """argparse type for counts of one or more."""
    if not text.isdecimal() or not 1 <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def non_negative_int(text: str) -> int:
    """argparse type for counts of zero or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def seed(text: str) -> int:
    """argparse type for --seed."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**32 - 1}")
    return int(text)


def positive_float(text: str) -> float:
    """argparse type for rates and spreads: finite and above 0."""
    value = non_negative_float(text)
    if not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def non_negative_float(text: str) -> float:
    """argparse type for a finite number of 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= sys.float_info.max**0.1:  # beyond 6e30 nothing is meant that float32 can hold
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number of 0 or more")
    return value


def share(text: str) -> float:
    """argparse type for a share: 0 or more and below 1."""
    value = non_negative_float(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not below 1")
    return value


def parser(script_docstring: str) -> argparse.ArgumentParser:
    """A parser that shows the script's docstring, and every default, in --help."""

    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        def _get_help_string(self, action: argparse.Action) -> str | None:
            return action.help if action.default is None else super()._get_help_string(action)

    made = argparse.ArgumentParser(description=script_docstring, formatter_class=Formatter, allow_abbrev=False)
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def parse_again(
    made: argparse.ArgumentParser,
    settings: dict[str, Any],
    fixed: Sequence[str],
    source: Path,
    required: Sequence[str] = (),
) -> tuple[argparse.Namespace, str]:
    """The command line of a run that goes on: its earlier settings stand in for what was not typed.

    Args:
        made: the script's parser.
        settings: by flag, as `source` has them.
        fixed: what a run that goes on cannot change.
        source: the file that they are from, for messages.
        required: arguments without which `made` parses nothing.

    Returns:
        The flags, and what to tell of those that were typed otherwise than before.

    Raises:
        InputError: a setting that could not have been typed, or one of `fixed` typed otherwise.
    """
    made.exit_on_error = False
    try:
        typed = [f"--{name}={value}" for name, value in settings.items() if value is not None]
        read = vars(made.parse_args([*required, *typed]))
        for name, value in settings.items():
            if read[name] != value:
                raise ValueError(f"--{name} is {value!r}")
    except (argparse.ArgumentError, ValueError) as error:
        raise InputError(f"{source} has a setting that cannot be ({error}). Start without --resume.") from error
    made.exit_on_error = True
    made.set_defaults(**settings)
    args = made.parse_args()
    changed = {name: (old, vars(args)[name]) for name, old in settings.items() if vars(args)[name] != old}
    for name in filter(changed.get, fixed):
        raise InputError(
            f"--{name} {changed[name][1]} contradicts {source}, which has {changed[name][0]}. Leave the flag out, or "
            "start without --resume."
        )
    told = ", ".join(f"--{name} {new} (was {old})" for name, (old, new) in changed.items())
    return args, f": {told}" if told else ""


def run(main: Callable[[], None]) -> None:
    """Run a script's main function; bad input ends in a message of one or two lines and exit code 2.

    Ctrl-C ends it with exit code 130 and one line, which main may give with the KeyboardInterrupt.
    """
    debug, pressed = "--debug" in sys.argv, []
    try:
        with ctrl_c_noted(pressed):
            main()
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if pressed or isinstance(error, KeyboardInterrupt):
            traceback.clear_frames(error.__traceback__)  # ends progress bars, so that the message has its own line
            message = str(error) if isinstance(error, KeyboardInterrupt) else ""
            _stop(message or "interrupted", INTERRUPTED, debug)
        if isinstance(error, BrokenPipeError):
            # The reader of our output is gone (`| head`): nothing to tell, and nothing more to flush.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(BAD_INPUT)
        if isinstance(error, (InputError, OSError)):
            _stop(f"error: {error}", BAD_INPUT, debug)
        _stop(f"unexpected {type(error).__name__}: {error}; --debug shows where", DEFECT, debug)


def _stop(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(message, file=sys.stderr)
    sys.exit(code)


def end_at_ctrl_c() -> None:
    """From here on Ctrl-C ends the process at once, in one line: before `utils.cli.run` runs a script, and after."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


@contextlib.contextmanager
def ctrl_c_noted(pressed: list[bool]) -> Iterator[None]:
    """KeyboardInterrupt at Ctrl-C, and word of it in `pressed`: some libraries make another exception of it."""

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(True)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Ctrl-C is heeded at the end of the block, in which files that belong together are written."""
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed and callable(before):
        before(signal.SIGINT, None)
