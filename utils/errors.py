"""The one exception for bad usage and bad input, and what its messages quote."""

import reprlib
from typing import Any


class InputError(Exception):
    """Something the user can mend: the message names the place, what was found, what was expected and the remedy.

    Scripts print the message without a traceback and exit with code 2 (see `utils.cli.run`).
    """


class DiskError(InputError):
    """A file could not be written, for want of space or permission: what long work has done so far is kept."""


def reason(error: Exception, longest: int = 160) -> str:
    """What a library says of an error, as a part of our message: its first line, without the advice that may follow."""
    said = (getattr(error, "strerror", None) or str(error)).strip() or type(error).__name__
    return said.splitlines()[0][:longest].rstrip(". ")


class _Short(reprlib.Repr):
    """A few words of each value, however large it is or would be if written out: lists may hold a list many times."""

    maxstring = maxother = 60

    def repr_int(self, value: int, level: int) -> str:
        """Numbers of thousands of digits are not to be had."""
        return repr(value) if value.bit_length() < 200 else f"a whole number of {value.bit_length()} bits"


def shown(value: Any) -> str:
    """A value from a file as messages quote it."""
    return _Short().repr(value)
