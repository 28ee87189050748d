"""Recipe versions: a step that produces something else under the same recipe must raise its version.

`expected.json` holds, for each step of the finished test study, its recipe's version and what it produced: hashes where
bytes are the same on every machine, numbers to four digits where floating point decides. When this test fails after a
change that was meant, raise the recipe's `version` and write the file anew: `python -m tests.workflow.test_versions`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import test_study
from trialign.steps import digest

EXPECTED = Path(__file__).parent / "expected.json"
HASHED = ("world", "tokenizer", "chat", "triples", "tokens")


def produced(results: Path) -> dict[str, Any]:
    """Return step -> version and what it produced, of every result in a study's store."""
    found: dict[str, Any] = {}
    for file in sorted((results / ".store").glob("*/run.json")):
        record = json.loads(file.read_text())
        recipe, facts = record["recipe"], record["facts"]
        name = recipe["step"]
        if name in HASHED:
            key = name if name != "tokens" else f"tokens {recipe['kind']}"
            found[key] = {"version": recipe["version"], "files": digest(record["files"])}
        elif name == "train":
            found[f"train {recipe['method']}"] = {
                "version": recipe["version"],
                "loss": pytest.approx(facts["final"]["loss"], rel=1e-3),
                "steps": facts["steps"],
            }
        elif name == "evaluate":
            scores = {benchmark: entry["n"] for benchmark, entry in facts["benchmarks"].items()}
            found[f"evaluate {'+'.join(scores)}"] = {"version": recipe["version"], "n": scores}
    return found


def test_what_steps_produce_is_what_their_versions_say(finished_study: Path) -> None:
    expected = json.loads(EXPECTED.read_text())
    now = produced(finished_study)
    assert now.keys() == expected.keys()
    for name, value in expected.items():
        assert value == now[name], f"{name}: raise its recipe's version, then python -m tests.workflow.test_versions"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        done = test_study(Path(folder), "all")
        if done.returncode:
            sys.exit(done.stdout)
        written = {
            name: {key: getattr(item, "expected", item) for key, item in value.items()}
            for name, value in produced(Path(folder)).items()
        }
        EXPECTED.write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
