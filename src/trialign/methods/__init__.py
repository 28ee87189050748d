"""The methods: one file each, found by its name. To add one, add a file with a `METHOD` and name it in a config."""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache

from trialign.errors import UserError, nearest
from trialign.methods._base import PAIRS, Branches, Method, Norm, Params, Terms, TrlSpec

__all__ = ["PAIRS", "Branches", "Method", "Norm", "Params", "Terms", "TrlSpec", "get", "names"]


@lru_cache(maxsize=1)
def names() -> tuple[str, ...]:
    """Return the names of all methods, sorted."""
    return tuple(sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_")))


def get(name: str) -> Method:
    """Return the method called `name`; UserError with the nearest name if there is none."""
    if name not in names():
        raise UserError(f"unknown method {name!r}{nearest(name, names())}; the methods are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}").METHOD
