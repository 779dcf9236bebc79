"""What the scripts share on the command line: flags of one meaning everywhere, and errors without tracebacks."""

import argparse
import math
import os
import sys
import traceback
from collections.abc import Callable

from utils.errors import InputError

BAD_INPUT = 2  # exit code
INTERRUPTED = 130
DEFECT = 1


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


def run(main: Callable[[], None]) -> None:
    """Run a script's main function; bad input ends in a message of one or two lines and exit code 2."""
    debug = "--debug" in sys.argv
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        _stop(f"error: {error}", BAD_INPUT, debug)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # The reader of our output is gone (`| head`): nothing to tell, and nothing more to flush.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(BAD_INPUT)
        _stop(f"error: {error}", BAD_INPUT, debug)
    except KeyboardInterrupt:
        _stop("interrupted", INTERRUPTED, debug)
    except Exception as error:
        _stop(f"unexpected {type(error).__name__}: {error}; --debug shows where", DEFECT, debug)


def _stop(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(message, file=sys.stderr)
    sys.exit(code)
