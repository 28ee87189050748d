"""Records behind a study, from an invented store with known sums."""

from __future__ import annotations

import json
from pathlib import Path

import networkx as nx
import pytest

from trialign.reporting import work

STEPS = {  # fingerprint -> step, seconds, GPUs, what it reads
    "world": ("world", 1.0, 0, []),
    "data": ("triples", 2.0, 0, ["world"]),
    "base": ("pretrain", 40.0, 1, ["world"]),
    "tuned": ("train", 100.0, 4, ["base", "data"]),
    "gone": ("train", 1000.0, 4, ["base"]),  # its model and record were pruned from the store
    "again": ("train", 50.0, 4, ["gone", "data"]),
    "suite": ("evaluate", 10.0, 1, ["tuned"]),
    "other": ("evaluate", 20.0, 1, ["again"]),
    "strange": ("train", 7.0, 1, ["base"]),  # nothing given stands on it
}


@pytest.fixture
def found(tmp_path: Path) -> dict[str, work.Record]:
    """The records that lead back from two suites and a run whose result is no longer in the store."""
    for name, (step, seconds, gpus, reads) in STEPS.items():
        record = {"fingerprint": name, "recipe": {"step": step}, "seconds": seconds, "gpus": gpus}
        record["inputs"] = {"first": [f"{other}/." for other in reads], "local": ["0123456789abcdef"]}
        for folder in ([] if name == "gone" else [tmp_path / ".store" / name]) + [tmp_path / "runs" / name]:
            folder.mkdir(parents=True)
            (folder / "run.json").write_text(json.dumps(record))
    given = [tmp_path / "runs/suite", tmp_path / "runs/other", tmp_path / "runs/again/run.json"]
    return work.records(given, tmp_path / ".store")


def test_records_lead_back_to_all_that_is_behind_them(found: dict[str, work.Record]) -> None:
    assert set(found) == set(STEPS) - {"gone", "strange"}


def test_each_step_counts_once_and_gpus_multiply(found: dict[str, work.Record]) -> None:
    assert work.by_rule(found.values())[:2] == [
        work.Work("train", 2, 150.0, 600.0, 100.0),
        work.Work("pretrain", 1, 40.0, 40.0, 40.0),
    ]
    assert work.total("all", found.values()) == work.Work("all", 7, 223.0, 670.0, 100.0)
    assert [item.rule for item in work.by_rule(found.values())] == ["train", "pretrain", "evaluate", "prepare", "world"]


def test_what_is_behind_one_result(found: dict[str, work.Record]) -> None:
    assert set(work.behind(found, ["suite"])) == {"suite", "tuned", "base", "data", "world"}
    assert set(work.behind(found, ["other", "suite"])) == set(found)


def test_the_rule_graph_is_what_was_read(found: dict[str, work.Record]) -> None:
    def made(step: str, read: str) -> work.Record:
        return {"fingerprint": step, "recipe": {"step": step}, "inputs": {"results": [f"{read}/."]}}

    ends = {
        end["fingerprint"]: end for end in (made("pivot", "suite"), made("table", "other"), made("forest", "other"))
    }
    graph = work.rule_graph(found | ends | {"distributions": made("distributions", "data")})
    assert set(graph.edges) == {
        ("world", "prepare"), ("world", "pretrain"), ("prepare", "train (2)"), ("pretrain", "train (2)"),
        ("train (2)", "evaluate (2)"), ("evaluate (2)", "table (2)"), ("evaluate (2)", "figure (2)"),
        ("prepare", "figure (2)"), ("table (2)", "index"), ("figure (2)", "index"),
    }  # fmt: skip
    assert nx.is_directed_acyclic_graph(graph)
