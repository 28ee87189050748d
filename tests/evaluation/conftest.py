"""A model folder, and steps in folders of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from evaluation_helpers import save_model

from trialign.recipes import Recipe
from trialign.steps import Step


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with room for 1024 tokens."""
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make_step(tmp_path: Path) -> Callable[..., Step[Any]]:
    """Return a function that makes a step with new `out` and `scratch` folders."""
    count = 0

    def make(recipe: Recipe, inputs: Mapping[str, Path], scratch: Path | None = None) -> Step[Any]:
        nonlocal count
        count += 1
        out, scratch = tmp_path / f"out{count}", scratch or tmp_path / f"scratch{count}"
        out.mkdir()
        scratch.mkdir(exist_ok=True)
        return Step(recipe, {name: (path,) for name, path in inputs.items()}, out, scratch)

    return make


@pytest.fixture
def one_second_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put this process into a SLURM job of which one second is left whenever squeue is asked."""
    (tmp_path / "squeue").write_text("#!/bin/sh\necho '42|0:01'\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
