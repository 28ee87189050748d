"""The step that makes `index.html`: the study as one page, from what it asks to each number and what made it.

The page is one file and asks for no other: figures are in it, and links lead to the files beside it. It shows what the
artifacts' files hold, the records of all runs, the cards of the data, and what the work took.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pandas as pd
from markupsafe import Markup

from trialign import pages, paths
from trialign.data import card_page
from trialign.recipes import IndexArtifact, IndexRecipe
from trialign.reporting import fragments, rulegraph, runs, work
from trialign.steps import Step

SECTIONS_OF_CARDS = ("Rows", "Dropped", "Lengths")  # what the page shows of a card; its own page shows all
VERDICTS = {"supported": "good", "contradicted": "bad", "not resolved": "open", "not run": "off"}  # and their looks


@dataclass(frozen=True)
class Shown:
    """An artifact on the page: its picture if it is a figure, its tables if not, and its claims if it has any."""

    artifact: IndexArtifact
    downloads: Sequence[fragments.Download]
    picture: str | None
    tables: Sequence[Markup]
    notes: Sequence[str]
    claims: Sequence[Mapping[str, str]]

    @property
    def verdicts(self) -> Mapping[str, int]:
        """How many claims have each verdict."""
        names = [claim["verdict"] for claim in self.claims]
        return {name: names.count(name) for name in dict.fromkeys([*VERDICTS, *names]) if name in names}


class Card(NamedTuple):
    """A data card: its title, the page with all of it (from the results root), and the sections that are shown here."""

    title: str
    name: str
    page: str
    sections: Sequence[card_page.Section]


class Made(NamedTuple):
    """When, where and with what the records were made."""

    first: str
    last: str
    hosts: Sequence[str]
    versions: Mapping[str, str]


def index(step: Step[IndexRecipe]) -> dict[str, Any]:
    """Write `index.html`. Inputs: see `IndexRecipe`."""
    recipe = step.recipe
    root = step.input("results").parent
    made = {name: root / paths.PROVENANCE / f"{name}.json" for name in (*_names(recipe), step.input("results").stem)}
    given = [*made.values(), *step.inputs["runs"], *step.inputs["suites"], *step.inputs["cards"]]
    records = work.records(given, root / paths.STORE)
    files = _by_artifact(recipe, step.inputs["artifacts"])
    results = pd.read_csv(step.input("results"), dtype={"judge": str}).fillna({"benchmark": "", "judge": ""})
    shown = [_shown(artifact, files[artifact.name]) for artifact in recipe.artifacts]
    found = runs.read(recipe, step.inputs["runs"], step.inputs["suites"], results)
    page = pages.render(
        "reporting/index.html.jinja",
        recipe=recipe,
        figures=[item for item in shown if item.picture],
        tables=[item for item in shown if not item.picture and not item.claims],
        claims=[item for item in shown if item.claims],
        runs=found,
        cards=[_card(folder, root) for folder in step.inputs["cards"]],
        work=work.by_rule(records.values()),
        total=work.total("all", records.values()),
        costs=[(artifact, _cost(work.read(made[artifact.name]), records)) for artifact in recipe.artifacts],
        graph=_graph(work.rule_graph(records), step.scratch),
        made=_made(records.values()),
        results=fragments.downloads([step.input("results")])[0],
        verdicts=VERDICTS,
        link=link,
        duration=duration,
        pretty=pretty,
    )
    (step.out / "index.html").write_text(page, encoding="utf-8")
    return {"runs": len(found), "artifacts": len(shown), "records": len(records), "bytes": len(page.encode())}


def link(path: str) -> str:
    """Return a path, or a place on the page (`#...`), as a relative address: names of runs hold + and @."""
    return quote(path, safe="/#=")


def duration(seconds: float) -> str:
    """Return a time as a person says it, with two digits at least."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def pretty(value: Any) -> str:
    """Return a value as indented JSON."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)


def _by_artifact(recipe: IndexRecipe, files: Iterable[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {artifact.name: [] for artifact in recipe.artifacts}
    for file in files:
        found[file.name.partition(".")[0]].append(file)  # table1.csv, table1.pairs.csv
    return found


def _shown(artifact: IndexArtifact, files: Collection[Path]) -> Shown:
    picture = fragments.picture(files)
    page = next((file for file in files if file.suffix == ".html"), None)
    tables, notes = ([], []) if picture or page is None else fragments.tables(page)
    return Shown(artifact, fragments.downloads(files), picture, tables, notes, fragments.claims(files))


def _card(folder: Path, root: Path) -> Card:
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    sections = [part for part in card_page.sections(card) if part.title in SECTIONS_OF_CARDS]
    place = folder.relative_to(root)
    return Card(card_page.title(card), "/".join(place.parts[2:]), (place / "card.html").as_posix(), sections)


def _names(recipe: IndexRecipe) -> list[str]:
    return [artifact.name for artifact in recipe.artifacts]


def _cost(record: work.Record, records: Mapping[str, work.Record]) -> work.Work:
    """Return what an artifact's step and all behind it took together."""
    return work.total(record["recipe"]["name"], work.behind(records, [record["fingerprint"]]).values())


def _graph(rules: Any, scratch: Path) -> str:
    """Return the rule graph as a data URI."""
    rulegraph.save_graph(rules, scratch / "rules.svg")
    return fragments.data_uri(scratch / "rules.svg")


def _made(records: Collection[work.Record]) -> Made:
    starts = sorted(record["started"] for record in records)
    versions: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for name, version in record["versions"].items():
            versions[name].add(version)
    told = {name: ", ".join(sorted(found)) for name, found in sorted(versions.items())}
    return Made(starts[0], starts[-1], sorted({record["host"] for record in records}), told)
