"""The one exception for bad usage and bad input, and what its messages quote."""


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
