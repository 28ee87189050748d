"""What holds for figures of every kind: files, metadata, bytes, sizes, words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from invented import Study, right
from PIL import Image

from trialign.artifact_settings import FIGURES
from trialign.recipes import (
    Column,
    CurvesRecipe,
    DistributionsRecipe,
    ForestRecipe,
    GridRecipe,
    HeatmapRecipe,
    Labelled,
    Recipe,
)
from trialign.reporting.figures import COLUMN_WIDTH, PAGE_WIDTH
from trialign.steps import FUNCTIONS

NOTICE = "This is the demo world & no more."
COMMON = {"title": "A figure", "caption": "What it shows.", "notice": NOTICE, "seeds": (1,)}
CELLS = {a: {b: f"mistral+tpo@alpha={a}@beta={b}" for b in ("0.1", "0.2", "0.4", "0.7")} for a in "123456"}
LINEAGES = [lineage for row in CELLS.values() for lineage in row.values()]
COLUMNS = tuple(
    Column(label=name, benchmark=name, metric="acc", scale=100) for name in ("Winogrande", "b", "c", "d", "e")
)
BASELINE = {"baseline": "mistral+sft", "baseline_label": "Mistral (demo)+SFT"}
LONG = tuple(Labelled(lineage=name, label=f"+SFT+TPO (α=0.{i}, β=0.25)") for i, name in enumerate(LINEAGES[:10]))
# kind -> a recipe, how wide its figure may be in inches, words that must be in it
KINDS: dict[str, tuple[Recipe, float, tuple[str, ...]]] = {
    "grid": (
        GridRecipe(name="grid", cells=CELLS, columns=COLUMNS[:1], **BASELINE, **COMMON),
        COLUMN_WIDTH, ("Winogrande", "α", "β = 0.4", "Mistral (demo)+SFT", "acc (%)"),
    ),
    "heatmap": (
        HeatmapRecipe(name="heatmap", cells=CELLS, columns=COLUMNS[:1], **BASELINE, **COMMON),
        COLUMN_WIDTH, ("Winogrande", "α", "β", "0.7", "baseline: Mistral (demo)+SFT"),
    ),
    "heatmaps": (
        HeatmapRecipe(name="heatmaps", cells=CELLS, columns=COLUMNS, **BASELINE, **COMMON), PAGE_WIDTH, ("b", "e"),
    ),
    "forest": (
        ForestRecipe(
            name="forest", rows=LONG, columns=COLUMNS[:1], **COMMON,
            baseline=Labelled(lineage="mistral+sft", label="Mistral (demo)+SFT"),
        ),
        COLUMN_WIDTH, ("+SFT+TPO (α=0.9, β=0.25)", "n = 60", "not resolved", "percentage points"),
    ),
    "forests": (
        ForestRecipe(
            name="forests", rows=LONG, columns=COLUMNS, **COMMON,
            baseline=Labelled(lineage="mistral+sft", label="Mistral (demo)+SFT"),
        ),
        PAGE_WIDTH, ("Winogrande", "e"),
    ),
    "curves": (CurvesRecipe(name="curves", rows=LONG, smooth=2, **COMMON), PAGE_WIDTH, ("loss", "accuracy", "step")),
    "distributions": (
        DistributionsRecipe(name="distributions", data=("triples",), tokenizer="", **COMMON),
        PAGE_WIDTH, ("triples: score gap", "reference − chosen", "words"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, tuple[Path, ...]]]:
    """The inputs of each step."""
    study = Study(tmp_path_factory.mktemp("study"))
    for i, lineage in enumerate([*LINEAGES, "mistral+sft"]):
        study.suite(lineage, [record for c in COLUMNS for record in right(str(c.benchmark), "acc", 20 + i, 60)])
    runs = []
    for i, lineage in enumerate(LINEAGES[:10]):
        run = study.root / "runs" / lineage / "seed1"
        recipe = {"method": "tpo", "view": "triple", "params": {"beta": 0.1}, "training": {"engine": "packed"}}
        (run / "run.json").write_text(json.dumps({"recipe": recipe, "facts": {"final": {}}}))
        names = ("loss", "margins", "accuracies", "logps/reference", "logps/chosen", "logps/rejected", "grad_norm")
        log = [{"step": n, **dict.fromkeys(names, 1.0 + n * (i + 1))} for n in range(1, 30)]
        (run / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
        runs.append(run / "run.json")
    prepared = study.root / "prepared" / "triples"
    prepared.mkdir(parents=True)
    words = {name: ["word " * (1 + i % 7) for i in range(50)] for name in ("prompt", "reference", "chosen", "rejected")}
    scores = np.sort(np.random.default_rng(1).integers(1, 11, (50, 3)))[:, ::-1].astype(float).tolist()
    pq.write_table(pa.table(words | {"scores": scores}), prepared / "train.parquet")
    results = {"results": tuple(study.folders)}
    inputs = {"curves": {"run": tuple(runs)}, "distributions": {"data": (prepared,)}}
    return {kind: inputs.get(recipe.step, results) for kind, (recipe, _, _) in KINDS.items()}


@pytest.fixture(scope="module")
def drawn(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where each kind's figure was drawn, in a process of its own."""
    return _drawing(given, tmp_path_factory.mktemp("drawn"), {})


def _drawing(given: dict[str, Any], root: Path, environment: dict[str, str]) -> Callable[[str], Path]:
    """Draw all figures in one process; return where each of them is."""
    asked = [
        (recipe.canonical(), {name: list(map(str, paths)) for name, paths in given[kind].items()}, str(root))
        for kind, (recipe, _, _) in KINDS.items()
    ]
    program = (
        "import importlib, json, sys\n"
        "from pathlib import Path\n"
        "from trialign.recipes import parse\n"
        "from trialign.steps import FUNCTIONS, Step\n"
        "for text, inputs, out in json.loads(sys.argv[1]):\n"
        "    recipe, out = parse(text), Path(out)\n"
        "    module, _, name = FUNCTIONS[recipe.step].partition(':')\n"
        "    given = {key: tuple(map(Path, paths)) for key, paths in inputs.items()}\n"
        "    getattr(importlib.import_module(module), name)(Step(recipe, given, out, out))\n"
    )
    subprocess.run([sys.executable, "-c", program, json.dumps(asked)], check=True, env=os.environ | environment)
    return lambda kind: root / KINDS[kind][0].name


def test_every_kind_of_figure_is_here() -> None:
    assert {recipe.step for recipe, _, _ in KINDS.values()} == set(FIGURES) <= set(FUNCTIONS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_carries_the_notice(drawn: Callable[[str], Path], kind: str) -> None:
    name = drawn(kind)
    svg = ElementTree.parse(name.with_suffix(".svg"))
    assert NOTICE in [element.text for element in svg.iter("{http://purl.org/dc/elements/1.1/}description")]
    assert NOTICE.encode() in name.with_suffix(".png").read_bytes()
    assert b"/Subject (" + NOTICE.encode() in name.with_suffix(".pdf").read_bytes()
    assert name.with_suffix(".csv").stat().st_size


def test_the_same_numbers_give_the_same_bytes_in_another_process(
    drawn: Callable[[str], Path], given: dict[str, Any], tmp_path: Path
) -> None:
    again = _drawing(given, tmp_path, {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"})
    for kind in KINDS:
        for suffix in (".csv", ".png", ".svg", ".pdf"):
            first, second = drawn(kind).with_suffix(suffix), again(kind).with_suffix(suffix)
            assert first.read_bytes() == second.read_bytes(), first.name


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_is_as_wide_as_a_column_or_a_page(drawn: Callable[[str], Path], kind: str) -> None:
    with Image.open(drawn(kind).with_suffix(".png")) as image:
        width = image.width / image.info["dpi"][0]
    most = KINDS[kind][1]
    assert 0.9 * most < width <= most + 0.07  # with the margin around what is drawn


@pytest.mark.parametrize("kind", KINDS)
def test_the_words_are_in_the_picture(drawn: Callable[[str], Path], kind: str) -> None:
    """matplotlib notes each text beside its glyphs."""
    builder = ElementTree.TreeBuilder(insert_comments=True)
    tree = ElementTree.parse(drawn(kind).with_suffix(".svg"), ElementTree.XMLParser(target=builder))
    texts = {str(node.text).strip() for node in tree.iter() if node.tag is ElementTree.Comment}
    assert set(KINDS[kind][2]) <= texts
    assert any(text.endswith(NOTICE.rsplit(maxsplit=1)[-1]) for text in texts)  # the notice, as it is wrapped
