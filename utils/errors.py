"""The one exception for bad usage and bad input."""


class InputError(Exception):
    """Something the user can mend: the message names the place, what was found, what was expected and the remedy.

    Scripts print the message without a traceback and exit with code 2 (see `utils.cli.run`).
    """


class DiskError(InputError):
    """A file could not be written, for want of space or permission: what long work has done so far is kept."""
