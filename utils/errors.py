"""The exceptions for bad usage and bad input, and two helpers that write their messages."""

import reprlib
from typing import Any


class InputError(Exception):
    """Something the user can mend: the message names the place, what was found, what was expected and the remedy.

    Scripts print the message without a traceback and exit with code 2 (see `utils.cli.run`).
    """


class DiskError(InputError):
    """A file could not be written, for want of space or permission; what was finished before is kept."""


def reason(error: Exception, longest: int = 160) -> str:
    """Quote what a library says of an error: its first line, without the advice that may follow."""
    said = (getattr(error, "strerror", None) or str(error)).strip() or type(error).__name__
    return said.splitlines()[0][:longest].rstrip(". ")


class _Short(reprlib.Repr):
    """Writes a few words for any value, however large it would be written out: a list may hold a list many times."""

    maxstring = maxother = 60

    def repr_int(self, value: int, level: int) -> str:
        """Replace a number of very many digits, which Python refuses to write, by its size."""
        return repr(value) if value.bit_length() < 200 else f"a whole number of {value.bit_length()} bits"


def shown(value: Any) -> str:
    """Quote a value from a file in a few words."""
    return _Short().repr(value)
