"""The README: its commands run, its recipes for adding things load, its files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

from tests.conftest import REPOSITORY, command
from trialign import artifacts, config, study

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True) for language, block in BLOCKS if language == "sh" for line in block.splitlines()
]
OVERLAYS = [yaml.safe_load(block) for language, block in BLOCKS if language == "yaml"]


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] != "make"], ids=" ".join)
def test_commands_run(words: list[str]) -> None:
    dry = ["-n"] if words[0] == "snakemake" and "-n" not in words else []
    done = command(*words[:1], *dry, *words[1:])
    assert done.returncode == 0, done.stdout[-3000:]


def test_make_targets_are_what_ci_runs() -> None:
    """CI runs `make lint` and `make test`; the tests run `make demo`."""
    targets = {words[1] for words in COMMANDS if words[0] == "make"}
    assert targets == {"demo", "test"}
    assert "make test" in (REPOSITORY / ".ci/run").read_text()


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda overlay: next(iter(overlay["artifacts"])))
def test_recipes_for_adding_things_load(overlay: dict) -> None:
    merged = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text())
    update_config(merged, overlay)
    experiment = config.load(merged)
    for name in overlay["artifacts"]:
        assert artifacts.artifact_recipe(experiment, name)
        assert study.results(experiment, [experiment.artifacts[name]])


def test_files_that_it_names_exist() -> None:
    for name in re.findall(r"\]\(([^)#]+)\)", README):
        assert name.startswith("https://") or (REPOSITORY / name).exists(), name
    for line in README.split("## The house")[1].split("## How to add")[0].splitlines():
        for name in re.findall(r"^ {8}([\w./]+(?:, [\w./]+)*) {2,}", line):
            for file in name.split(", "):
                assert (REPOSITORY / "src/trialign" / file).exists(), file
    assert Path(REPOSITORY / "LICENSE").exists()
