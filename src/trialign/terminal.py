"""What is printed for people: as wide as the terminal is; where there is none, wide enough for tables."""

from __future__ import annotations

from rich.console import Console

WIDTH = 140  # where the output is no terminal
UNBOUNDED = 10_000  # nothing folds: a line each for whoever reads it by a program


def console(width: int = WIDTH) -> Console:
    """Return a console on standard output; width: columns where that is no terminal, whatever COLUMNS says."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=width)
