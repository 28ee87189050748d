"""Task files of ours, for what the harness builds otherwise today than version 0.3 did (docs/benchmarks.md).

`include: trialign/<file>` in a config names one of these; every other `include` is a file of lm_eval/tasks. A file of
ours may name a file of the harness as its `harness`: that one's prompts, choices and metrics, under ours. The config's
check reads this module: it imports the harness only where it must.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trialign.errors import UserError, nearest

OURS, PREFIX = Path(__file__).parent, "trialign/"
HARNESS = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks"


def locate(include: str) -> Path:
    """Return the task file that a config's `include` names; UserError where there is none."""
    root, name = (OURS, include.removeprefix(PREFIX)) if include.startswith(PREFIX) else (HARNESS, include)
    path = root / name
    if path.is_file():
        return path
    files = path.parent.glob("*.yaml") if path.parent.is_dir() else ()
    there = [include.removesuffix(name) + file.relative_to(root).as_posix() for file in files]
    where = "is none of trialign's task files" if root == OURS else "is no task file of lm_eval/tasks"
    raise UserError(f"'{include}' {where}{nearest(include, there)}")


def metrics(path: Path) -> tuple[str, ...]:
    """Return the metrics that a task file, or what it is built on, lists by name; none where that cannot be told.

    Without the harness's reader, which takes seconds to import: the lines alone are read.
    """
    text = path.read_text(encoding="utf-8")
    if listed := re.findall(r"""^\s*-\s*\{?["']?metric["']?\s*:\s*([^\s,}]+)""", text, flags=re.MULTILINE):
        named = tuple(name.strip("\"'") for name in listed)
        return named if all(re.fullmatch(r"\w+", name) for name in named) else ()
    for key, folder in (("include", path.parent), ("harness", HARNESS)):
        built_on = re.search(rf"""^["']?{key}["']?\s*:\s*(\S+)\s*$""", text, flags=re.MULTILINE)
        if built_on and (file := folder / built_on[1].strip("\"'")).is_file():
            return metrics(file)
    return ()


def definition(path: Path) -> dict[str, Any]:
    """Return what a task file states, with what it is built on; functions are their names."""
    from lm_eval.tasks.manager import load_yaml

    stated = load_yaml(path, resolve_func=False)
    return on_harness(stated, functions=False) if "harness" in stated else stated


def on_harness(ours: Mapping[str, Any], *, functions: bool) -> dict[str, Any]:
    """Return a definition of ours on top of the harness's that it names. functions: as such, or as their names."""
    from lm_eval.tasks.manager import load_yaml

    rest = {key: value for key, value in ours.items() if key != "harness"}
    return load_yaml(HARNESS / ours["harness"], resolve_func=functions) | rest
