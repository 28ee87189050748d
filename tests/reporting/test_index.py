"""The study's page, made by its step from a finished study: what it says against the files that it stands on."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
from lxml import html

from tests.conftest import test_study as run_study
from trialign import artifact_settings, artifacts, config, paths, study
from trialign.recipes import IndexArtifact, IndexRecipe, parse
from trialign.reporting import explain, fragments
from trialign.reporting.index import duration, index, link
from trialign.steps import Step

CONFIGS = [Path("config/config.yaml"), Path("config/demo.yaml"), Path("config/test.yaml")]
CLAIMS = """id,claim,source,verdict,difference,unit,low,high,p_holm,n,note
tpo-sft,TPO is above SFT <on ARC>,"Table 1, row 9",supported,4.27012,%,1.02,7.52,0.0121,1172,
orpo,ORPO is better without SFT,Section 5.2,contradicted,-2.1,points,-3.9,-0.3,0.000002,160,Of two.
alpha,alpha matters more than beta,Figure 2,not run,,points,,,,,
"""


def make(root: Path, out: Path, claims: Path | None = None) -> html.HtmlElement:
    """Run the step on a finished study's files, with these claims in place of its own, and return its page."""
    experiment = config.load_files(CONFIGS)
    others = {name: artifact for name, artifact in experiment.artifacts.items() if artifact.kind != "claims"}
    experiment = experiment.model_copy(update={"results_dir": str(root), "artifacts": others})
    recipe: IndexRecipe = artifacts.index_recipe(experiment)
    inputs = {name: tuple(map(Path, files)) for name, files in study.index_inputs(experiment).items()}
    if claims:
        shown = IndexArtifact(name=claims.stem, title="Claims", caption="Of the paper.", lineages=())
        recipe = recipe.model_copy(update={"artifacts": (*recipe.artifacts, shown)})
        inputs["artifacts"] += (claims,)
    for folder in (out, out / "scratch"):
        folder.mkdir()
    index(Step(parse(recipe.canonical()), inputs, out, out / "scratch"))
    return html.parse(out / "index.html").getroot()


@pytest.fixture(scope="module")
def page(finished_study: Path) -> html.HtmlElement:
    """The page that Snakemake's run of the small study has made."""
    return html.parse(finished_study / "index.html").getroot()


def texts(row: html.HtmlElement) -> list[str]:
    return [cell.text_content().strip() for cell in row]


def test_it_asks_for_nothing_but_the_files_beside_it(finished_study: Path, page: html.HtmlElement) -> None:
    links = [value for _, _, value, _ in page.iterlinks()]
    assert len(links) > 50
    for value in links:
        assert value.startswith(("#", "data:")) or (finished_study / unquote(value)).is_file(), value
    assert not page.xpath("//link | //iframe | //script[@src]")


def test_the_abstract_says_what_the_study_is(page: html.HtmlElement) -> None:
    experiment = config.load_files(CONFIGS)
    abstract = page.get_element_by_id("abstract").text_content()
    figures = sum(artifact.kind in artifact_settings.FIGURES for artifact in experiment.artifacts.values())
    shown = f"2 tables and {figures} figures"
    for text in (experiment.title, experiment.notice, experiment.abstract, "4 runs", shown):
        assert text in abstract


def test_each_run_shows_the_scores_of_results_csv(finished_study: Path, page: html.HtmlElement) -> None:
    results = pd.read_csv(finished_study / "results.csv")
    experiment = config.load_files(CONFIGS)
    labels = {item.label: name for name, item in experiment.benchmarks.items()}
    runs = {run.get("id").split("/")[1]: run for run in page.xpath("//section[@id='runs']//details[@class='run']")}
    assert set(runs) == {"mistral", *results["lineage"]}
    checked = 0
    for lineage, run in runs.items():
        rows = run.xpath(".//h4[text()='Scores']/following-sibling::div[1]//tbody/tr")
        expected = results[results["lineage"] == lineage].set_index(["benchmark", "metric"])
        assert len(rows) == len(expected)
        for benchmark, metric, value, stderr, n, _ in map(texts, rows):
            row = expected.loc[labels[benchmark], metric.removesuffix(" (%)")]
            scale = 100 if metric.endswith("(%)") else 1
            assert float(value) == pytest.approx(scale * row["value"], abs=0.005001)
            assert float(stderr) == pytest.approx(scale * row["stderr"], abs=0.005001)
            assert int(n) == row["n"]
            checked += 1
    assert checked == len(results)


def test_each_run_shows_how_it_was_made(finished_study: Path, page: html.HtmlElement) -> None:
    lineage = "mistral+sft+dpo@beta=0.1"
    record = json.loads((finished_study / "runs" / lineage / "seed1/run.json").read_text())
    run = page.get_element_by_id(f"run/{lineage}/seed1")
    told = run.text_content()
    assert record["fingerprint"] in told and record["host"] in told and record["versions"]["torch"] in told
    assert all(digest in told for digest in record["files"].values())
    assert json.loads(run.xpath(".//summary[text()='Recipe']/following-sibling::pre")[0].text) == record["recipe"]
    stages = run.xpath(".//ol[@class='stages']/li")
    assert [stage.xpath(".//span[@class='facts']")[0].text.split(" on ")[0] for stage in stages] == [
        "pretrain", "sft", "dpo",
    ]  # fmt: skip
    parent = run.xpath(".//p[starts-with(., 'Parent')]/a/@href")
    assert parent == ["#run/mistral%2Bsft/seed1"]
    final = dict(texts(row) for row in run.xpath(".//div[@class='columns']//tbody/tr"))
    assert float(final["loss"]) == pytest.approx(record["facts"]["final"]["loss"], rel=1e-3)
    assert len(run.xpath(".//polyline/@points")[0].split()) == record["facts"]["steps"]


def test_tables_are_those_of_the_artifacts(finished_study: Path, page: html.HtmlElement) -> None:
    for name in ("table1", "table2"):
        expected = pd.read_csv(finished_study / f"{name}.csv", dtype=str, keep_default_na=False)
        (table,) = page.get_element_by_id(f"artifact/{name}").iter("table")
        rows = [texts(row) for row in table.xpath("./tbody/tr")]
        assert [[re.sub(r"[†≈]? \[.*", "", cell) for cell in row] for row in rows] == expected.to_numpy().tolist()
        assert texts(table.xpath("./tfoot/tr")[0])[0] == "n"
        assert not table.xpath(".//*[@id or @style]")
        numeric = [cell.text_content().strip() for cell in table.xpath(".//th[contains(@class, 'number')]")]
        assert numeric == list(expected.columns[2:])


def test_figures_are_in_the_page_byte_by_byte(finished_study: Path, page: html.HtmlElement) -> None:
    picture = page.get_element_by_id("artifact/figure2").xpath(".//img/@src")
    assert picture == [fragments.data_uri(finished_study / "figure2.svg")]


def test_a_large_drawing_is_shown_by_its_bitmap(tmp_path: Path) -> None:
    svg, png = tmp_path / "large.svg", tmp_path / "large.png"
    svg.write_bytes(b" " * (fragments.LARGEST_SVG + 1))
    png.write_bytes(b"\x89PNG")
    assert fragments.picture([svg, png]) == "data:image/png;base64,iVBORw=="
    svg.write_bytes(b"<svg/>")
    assert fragments.picture([svg, png]).startswith("data:image/svg+xml;base64,")
    assert fragments.picture([tmp_path / "table.csv"]) is None


def test_claims_come_first_with_their_verdicts(finished_study: Path, tmp_path: Path) -> None:
    (tmp_path / "claims.csv").write_text(CLAIMS)
    page = make(finished_study, tmp_path / "out", tmp_path / "claims.csv")
    rows = [texts(row) for row in page.xpath("//section[@id='claims']//tbody/tr")]
    assert rows == [
        ["TPO is above SFT <on ARC>", "supported", "4.27", "%", "1.02 to 7.52", "0.012", "1172", "Table 1, row 9"],
        [
            *("ORPO is better without SFT Of two.", "contradicted", "-2.10", "points", "-3.90 to -0.30", "< 0.001"),
            *("160", "Section 5.2"),
        ],
        ["alpha matters more than beta", "not run", "–", "", "–", "–", "–", "Figure 2"],
    ]
    assert "1 supported 1 contradicted 1 not run" in " ".join(page.get_element_by_id("abstract").text_content().split())
    assert [section.get("id") for section in page.xpath("//section")][:3] == ["abstract", "claims", "tables"]


def test_a_study_without_claims_says_nothing_of_them(finished_study: Path, tmp_path: Path) -> None:
    page = make(finished_study, tmp_path / "out")
    assert not page.xpath("//*[@id='claims'] | //a[@href='#claims']")


def test_the_same_study_gives_the_same_bytes(finished_study: Path, tmp_path: Path) -> None:
    """Made anew by Snakemake in a copy of the tree, and nothing else with it."""
    results = tmp_path / "study"
    shutil.copytree(finished_study, results)
    shutil.rmtree(results / ".store" / json.loads((results / "provenance/index.json").read_text())["fingerprint"])
    (results / "index.html").unlink()
    done = run_study(results, f"{results}/index.html")
    assert done.returncode == 0 and "1 of 1 steps" in done.stdout, done.stdout
    assert (results / "index.html").read_bytes() == (finished_study / "index.html").read_bytes()


def test_cost_and_rule_graph_count_each_step_once(page: html.HtmlElement, finished_study: Path) -> None:
    rows = {cells[0]: cells[1:] for cells in map(texts, page.xpath("//section[@id='cost']//table")[0].iter("tr"))}
    expected = {
        "train": "3",
        "pretrain": "1",
        "evaluate": "3",
        "answer": "3",
        "judge": "3",
        "prepare": "2",
        "world": "1",
    }
    assert {name: rows[name][0] for name in expected} == expected
    counts = [int(cells[0]) for name, cells in rows.items() if name not in ("Work", "all")]
    assert sum(counts) == int(rows["all"][0])
    by_artifact = page.xpath("//section[@id='cost']//table")[1].xpath("./tbody/tr")
    for row in by_artifact:
        name = row.xpath(".//a/@href")[0].removeprefix("#artifact/")
        assert texts(row)[2] == str(len(explain.explain(finished_study / name).steps)), name
    assert len(by_artifact) > 1
    alt = page.xpath("//section[@id='workflow']//img/@alt")[0]
    assert "train (3)" in alt and "world (1)" in alt


def test_runs_behind_an_imported_model_are_not_asked_for() -> None:
    """The paper's Mistral SFT is taken as published: its base is not made; what was trained on it is."""
    experiment = config.load_files([Path("config/config.yaml")])
    runs = [str(run) for run in study.runs(experiment)]
    assert len(set(runs)) == len(runs)
    assert runs.index("mistral+sft") < runs.index("mistral+sft+dpo@beta=0.1")
    inputs = study.index_inputs(experiment)
    assert study.fill(experiment, paths.RUN_JSON, lineage="mistral+sft", seed=42) in inputs["runs"]
    assert study.fill(experiment, paths.TOKENS, model="mistral", data="triples") in inputs["cards"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (59.4, "59 s"), (120, "2.0 min"), (3600, "60 min"), (7200, "2.0 h"),
     (90 * 3600, "3.8 d"), (math.pi * 86400 * 10, "31 d")],
)  # fmt: skip
def test_durations_are_said_as_a_person_says_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_addresses_keep_the_names_of_runs() -> None:
    assert link("runs/mistral+tpo@alpha=0.9/seed1/run.json") == "runs/mistral%2Btpo%40alpha=0.9/seed1/run.json"
