"""A way to run a step function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trialign.recipes import Recipe
from trialign.steps import Step


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Run a step function on a recipe and inputs; returns its output folder and its facts."""

    def call(function: Callable[..., dict[str, Any]], recipe: Recipe, **inputs: Path) -> tuple[Path, dict[str, Any]]:
        work = tmp_path / f"step{len(list(tmp_path.glob('step*')))}"
        out, scratch = work / "out", work / "scratch"
        out.mkdir(parents=True)
        scratch.mkdir()
        return out, function(Step(recipe, {name: (path,) for name, path in inputs.items()}, out, scratch))

    return call
