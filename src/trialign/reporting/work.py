"""What was done for a study: the records of all steps behind it, and what they took by kind of work.

A record names the fingerprints of what its step has read, and the store holds a result for each: so a few records lead
to all that are behind them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx

from trialign.artifact_settings import FIGURES
from trialign.steps import RUN_JSON

Record = dict[str, Any]
# the rules of steps that are not called like them
RULES = {
    "web": "fetch", "import": "import_model", "chat": "prepare", "triples": "prepare", "pivot": "table",
    **dict.fromkeys(FIGURES, "figure"),
}  # fmt: skip


class Work(NamedTuple):
    """Steps of one kind: how many, their seconds and GPU-seconds together, and the seconds of the longest."""

    rule: str
    steps: int
    seconds: float
    gpu_seconds: float
    longest: float


def rule(record: Record) -> str:
    """Return the rule that a record's step belongs to."""
    step = record["recipe"]["step"]
    return RULES.get(step, step)


def read(path: Path) -> Record:
    """Return the record of a result: of its folder, or the file itself."""
    return json.loads((path / RUN_JSON if path.is_dir() else path).read_text(encoding="utf-8"))


def records(given: Iterable[Path], store: Path) -> dict[str, Record]:
    """Return fingerprint -> record of the given results and of every step behind them.

    A step whose result is in the store no more (pruned, and no given one) is left out, with what is behind it alone.
    """
    found = {record["fingerprint"]: record for record in map(read, given)}
    waiting = list(found.values())
    while waiting:
        for fingerprint in read_by(waiting.pop()):
            if fingerprint not in found and (store / fingerprint / RUN_JSON).is_file():
                found[fingerprint] = read(store / fingerprint)
                waiting.append(found[fingerprint])
    return found


def read_by(record: Record) -> list[str]:
    """Return the fingerprints of the steps whose results a step has read, each once; local folders have none."""
    read = [path.partition("/")[0] for paths in record["inputs"].values() for path in paths if "/" in path]
    return list(dict.fromkeys(read))


def behind(found: Mapping[str, Record], ends: Iterable[str]) -> dict[str, Record]:
    """Return those of the records that the fingerprints `ends` stand on, themselves included."""
    reached: dict[str, Record] = {}
    waiting = list(ends)
    while waiting:
        fingerprint = waiting.pop()
        if fingerprint in found and fingerprint not in reached:
            reached[fingerprint] = found[fingerprint]
            waiting.extend(read_by(found[fingerprint]))
    return reached


def by_rule(found: Collection[Record]) -> list[Work]:
    """Return what the steps took, by rule, the dearest first. A record that does not name its GPUs has used none."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in found:
        groups[rule(record)].append(record)
    work = [total(name, group) for name, group in groups.items()]
    return sorted(work, key=lambda item: (-item.seconds, item.rule))


def total(name: str, found: Collection[Record]) -> Work:
    """Return what some steps took together."""
    seconds = [record["seconds"] for record in found]
    gpus = [record.get("gpus", 0) for record in found]
    gpu_seconds = sum(time * number for time, number in zip(seconds, gpus, strict=True))
    return Work(name, len(seconds), sum(seconds), gpu_seconds, max(seconds, default=0.0))


def rule_graph(found: Mapping[str, Record]) -> nx.DiGraph:
    """Return the rules that made the study, each with the number of its steps, and which reads from which.

    The page reads from all that nothing else reads: its own record is not there yet.
    """
    graph = nx.DiGraph()
    counts: dict[str, int] = defaultdict(int)
    for record in found.values():
        counts[rule(record)] += 1
        graph.add_node(rule(record))
        graph.add_edges_from((rule(found[other]), rule(record)) for other in read_by(record) if other in found)
    graph.add_edges_from([(name, "index") for name in list(graph) if not graph.out_degree(name)])
    labels = {name: f"{name} ({counts[name]})" if counts[name] > 1 else name for name in graph}
    return nx.relabel_nodes(graph, labels)
