from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from trialign.errors import UserError
from trialign.reporting.rulegraph import draw, layered, ordered, parse, shifted

SNAKEFILE = """
wildcard_constraints:
    lineage="[a-z+]+"
rule all:
    input: "table.csv", "notes.txt"
rule base:
    output: "runs/m"
    shell: "touch {output}"
rule tokens:
    output: "tokens"
    shell: "touch {output}"
rule train:
    input: "runs/{lineage}", "tokens"
    output: "runs/{lineage}+{stage}"
    shell: "touch {output}"
rule table:
    input: "runs/m+sft+tpo", "tokens"
    output: "table.csv"
    shell: "touch {output}"
rule notes:
    output: "notes.txt"
    shell: "touch {output}"
"""


@pytest.fixture(scope="module")
def dot(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The rule graph of a small real workflow with a recursive rule, as Snakemake prints it."""
    folder = tmp_path_factory.mktemp("workflow")
    (folder / "Snakefile").write_text(SNAKEFILE)
    command = [sys.executable, "-m", "snakemake", "--rulegraph", "dot", "--cores", "1", "--quiet", "all"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_rules_and_edges_are_those_of_the_workflow(dot: str) -> None:
    assert set(parse(dot).edges) == {
        ("base", "train"),
        ("tokens", "train"),
        ("train", "train"),
        ("train", "table"),
        ("tokens", "table"),
        ("table", "all"),
        ("notes", "all"),
    }


def test_every_rule_is_below_what_it_reads(dot: str) -> None:
    rules = parse(dot)
    depth = layered(rules)
    assert all(depth[a] < depth[b] for a, b in rules.edges if a != b)
    assert depth["notes"] == depth["all"] - 1  # what nobody else reads stays near its reader


def test_boxes_and_passing_edges_do_not_overlap(dot: str) -> None:
    rules = parse(dot)
    layers = ordered(rules)
    places = shifted(rules, layers)
    for layer in layers:
        for left, right in itertools.pairwise(layer):
            assert places[left] < places[right]
            if isinstance(left, str) and isinstance(right, str):
                letters = len(left) + len(right)
                assert places[right] - places[left] > 0.07 * letters / 2  # inches of text at 8 points


def test_rules_that_read_in_turns_can_be_drawn(tmp_path: Path) -> None:
    nodes = "\n".join(
        f'\t{i}[label = "{name}", color = "0 0.6 0.85", style="rounded"];' for i, name in enumerate("abc")
    )
    draw(f"digraph snakemake_dag {{\n{nodes}\n\t0 -> 1\n\t1 -> 0\n\t1 -> 2\n}}", tmp_path / "graph")
    assert (tmp_path / "graph.svg").is_file()


def test_the_picture_is_written_as_svg_and_png(dot: str, tmp_path: Path) -> None:
    draw(dot, tmp_path / "rulegraph")
    assert ElementTree.parse(tmp_path / "rulegraph.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "rulegraph.png").read_bytes().startswith(b"\x89PNG")
    first = (tmp_path / "rulegraph.svg").read_bytes()
    draw(dot, tmp_path / "rulegraph")
    assert (tmp_path / "rulegraph.svg").read_bytes() == first


def test_a_text_without_rules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no rules"):
        draw("Building DAG of jobs...", tmp_path / "rulegraph")
