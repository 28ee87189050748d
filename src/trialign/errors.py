"""The one exception that users see: a single line that says what, where, what is allowed, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


class UserError(Exception):
    """A mistake that the user can mend. Its text is one clear line; the CLI prints it without a traceback."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest of `allowed`, or an empty string when none is close."""
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def names(known: Iterable[str]) -> str:
    """Return names as a message lists them: `'a', 'b'`."""
    return ", ".join(f"'{name}'" for name in known)


def unknown(what: str, name: str, allowed: Collection[str]) -> str:
    """Return what a message says of a name that does not exist: the closest that does, and all of them."""
    return f"there is no {what} '{name}'{nearest(name, allowed)}; there are {names(allowed)}"


class Again(Exception):
    """A step ends here and is to be started again, in a job of its own under SLURM; what it did is kept.

    after: the SLURM job that has to end first, if any.
    """

    def __init__(self, reason: str, after: str | None = None):
        super().__init__(reason)
        self.reason, self.after = reason, after
