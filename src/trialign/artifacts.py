"""The recipes of artifacts: rows, columns, headings and captions of tables and figures, claims, the study's page.

Nothing here imports torch: the Snakefile asks this module.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import cast

from trialign import claims, methods, recipes, study
from trialign.artifact_settings import (
    AnyArtifact,
    ClaimsArtifact,
    ColumnSpec,
    CurvesArtifact,
    DistributionsArtifact,
    FactsArtifact,
    ForestArtifact,
    GridArtifact,
    HeatmapArtifact,
    PivotArtifact,
    TableArtifact,
    splits_items,
)
from trialign.config import Experiment
from trialign.lineage import Lineage, spell
from trialign.reporting import published
from trialign.settings import HarnessBenchmark, JudgedBenchmark

HIGHEST_SCORE = 10.0  # of a judge
SETTINGS = {"Learning Rate": "learning_rate", "Epoch": "epochs", "Batch Size": "batch"}  # heading -> of a stage's
SHARES = ("acc", "acc_norm", "exact_match", "f1")  # the harness's metrics that tables show in percent


def artifact_recipe(experiment: Experiment, name: str) -> recipes.Artifact:
    """Return the recipe of a table or figure."""
    artifact = experiment.artifacts[name]
    common = {
        "name": name,
        "title": artifact.title,
        "caption": " ".join(
            [
                artifact.caption,
                *_split(experiment, artifact),
                *_judged_by(experiment, artifact),
                *([f"Ours: {'; '.join(choices)}."] if (choices := choices_of_ours(experiment, artifact)) else []),
            ]
        ),
        "notice": experiment.notice,
        "seeds": experiment.seeds,
    }
    match artifact:
        case TableArtifact():
            rows = _rows(experiment, artifact)
            columns = tuple(column(experiment, spec) for spec in artifact.columns)
            known = published.of_artifact(experiment, name)
            return recipes.TableRecipe(**common, texts=artifact.texts, rows=rows, columns=columns, published=known)
        case PivotArtifact():
            cells = {
                row: {
                    heading: str(experiment.lineage(f"{start}+{stages}"))
                    for heading, stages in artifact.columns.items()
                }
                for row, start in artifact.rows.items()
            }
            number = column(experiment, artifact.benchmark)
            return recipes.PivotRecipe(
                **common,
                corner="Model",
                rows=tuple(artifact.rows),
                columns=tuple(artifact.columns),
                cells=cells,
                column=number,
                published=published.of_artifact(experiment, name),
            )
        case GridArtifact():
            kind = recipes.HeatmapRecipe if isinstance(artifact, HeatmapArtifact) else recipes.GridRecipe
            return kind(
                **common,
                cells=study.grid_cells(experiment, artifact),
                columns=tuple(column(experiment, spec) for spec in artifact.columns),
                baseline=str(experiment.lineage(artifact.baseline)),
                baseline_label=_label(experiment, experiment.lineage(artifact.baseline)),
            )
        case ForestArtifact():
            baseline = experiment.lineage(artifact.baseline)
            return recipes.ForestRecipe(
                **common,
                rows=_labelled(experiment, artifact.rows, beside=baseline),
                columns=tuple(column(experiment, spec) for spec in artifact.columns),
                baseline=recipes.Labelled(
                    lineage=str(baseline), label=_label(experiment, baseline) + _spelled(baseline)
                ),
            )
        case CurvesArtifact():
            rows = _labelled(experiment, artifact.rows)
            return recipes.CurvesRecipe(**common, rows=rows, smooth=artifact.smooth)
        case DistributionsArtifact():
            label = experiment.models[artifact.model].label if artifact.model else ""
            return recipes.DistributionsRecipe(**common, data=artifact.data, tokenizer=label)
        case FactsArtifact():
            return _facts_recipe(experiment, artifact, common)
        case ClaimsArtifact():
            return _claims_recipe(experiment, artifact, common)


def _rows(experiment: Experiment, artifact: TableArtifact) -> tuple[recipes.Row, ...]:
    """Return the rows; where some of one model and method differ in what no column shows, all of them spell it."""
    found = [experiment.lineage(text) for text in artifact.rows]
    texts = [{name: _text(experiment, lineage, name) for name in artifact.texts} for lineage in found]
    shown = {SETTINGS[name] for name in artifact.texts if name in SETTINGS}
    spelled: dict[tuple[str | None, str | None], set[str]] = {}
    for lineage, cells in zip(found, texts, strict=True):
        spelled.setdefault((cells.get("Model"), cells.get("Align")), set()).add(_spelled(lineage, shown))
    return tuple(
        recipes.Row(
            lineage=str(lineage),
            texts=cells | {"Align": cells["Align"] + _spelled(lineage, shown)}
            if "Align" in cells and len(spelled[cells.get("Model"), cells["Align"]]) > 1
            else cells,
        )
        for lineage, cells in zip(found, texts, strict=True)
    )


def _spelled(lineage: Lineage, but: Collection[str] = ()) -> str:
    names = {"alpha": "α", "beta": "β"}
    params = [item for item in (lineage.stages[-1].params if lineage.stages else ()) if item[0] not in but]
    return f" ({', '.join(f'{names.get(key, key)}={spell(value)}' for key, value in params)})" if params else ""


def _text(experiment: Experiment, lineage: Lineage, name: str) -> str:
    """Return a text cell: Model is the parent's label, Align the last stage's, the rest its training settings."""
    stage = lineage.last
    if name == "Model":
        return _label(experiment, lineage.parent or lineage)
    if stage is None:
        return "-"
    if name == "Align":
        return _preset_label(experiment, stage.name)
    if experiment.preset(stage).candidates:
        return recipes.CHOSEN
    if name == "Chosen":
        return "-"
    return spell(getattr(experiment.training_of(stage), SETTINGS[name]))


def _label(experiment: Experiment, lineage: Lineage) -> str:
    parts = [experiment.models[lineage.base].label]
    parts += [_preset_label(experiment, stage.name) for stage in lineage.stages]
    return "+".join(parts)


def _preset_label(experiment: Experiment, name: str) -> str:
    preset = experiment.stages[name]
    return preset.label or methods.get(preset.method).label


def _labelled(
    experiment: Experiment, texts: Sequence[str], beside: Lineage | None = None
) -> tuple[recipes.Labelled, ...]:
    """Return lineages with short labels: of their stages alone where all have one base (`beside`, too).

    Where two would read the same, what their last stages spell is added.
    """
    found = [experiment.lineage(text) for text in texts]
    one_base = len({lineage.base for lineage in (*found, *([beside] if beside else []))}) == 1
    labels = [_label(experiment, lineage) for lineage in found]
    if one_base:
        base = experiment.models[found[0].base].label
        labels = [label.removeprefix(base) or label for label in labels]
    return tuple(
        recipes.Labelled(lineage=str(lineage), label=label + (_spelled(lineage) if labels.count(label) > 1 else ""))
        for lineage, label in zip(found, labels, strict=True)
    )


def _facts_recipe(experiment: Experiment, artifact: FactsArtifact, common: dict[str, object]) -> recipes.FactsRecipe:
    rows = []
    for name in artifact.benchmarks:
        item = experiment.benchmarks[name]
        harness = isinstance(item, HarnessBenchmark)
        rows.append(
            {
                "Benchmark": item.label,
                "Suite": item.suite,
                "Task": Path(item.include).stem if harness else "two-turn questions",
                "Few-shot": str(item.shots) if harness else "-",
                "Metric": item.metric if harness else f"1-10, {item.judge}",
                "Average": ("over subsets" if item.aggregate == "subsets" else "over items")
                if harness
                else "over turns",
            }
        )
    return recipes.FactsRecipe(**common, columns=tuple(rows[0]), rows=tuple(rows), benchmarks=artifact.benchmarks)


def _claims_recipe(experiment: Experiment, artifact: ClaimsArtifact, common: dict[str, object]) -> recipes.ClaimsRecipe:
    found = study.claims_of(experiment, artifact)
    figures = study.figures_of_claims(experiment, found)
    reasons = {claim.id: study.why_not_run(experiment, claim, claim.grid(figures)) for claim in found}
    named = {name: experiment.artifacts.get(name) for claim in found for name in claim.artifacts}
    used = study.benchmarks(artifact)
    judged = {name for name, item in experiment.benchmarks.items() if isinstance(item, JudgedBenchmark)}
    return recipes.ClaimsRecipe(
        **common,
        names=study.names_in_claims(experiment, artifact, _named_lineages(experiment, artifact)),
        columns={name: column(experiment, name) for name in experiment.benchmarks if name in used},
        wholes={name: HIGHEST_SCORE if name in judged else 100.0 for name in sorted(used)},
        figures=figures,
        lacking={name: reason for name, reason in reasons.items() if reason},
        headings={name: _headings(item) for name, item in named.items() if _headings(item)},
    )


def _named_lineages(experiment: Experiment, artifact: ClaimsArtifact) -> list[str]:
    """Return the lineages that the claims and the published values name, as they spell them."""
    texts = [text for claim in claims.read(Path(artifact.file)) for text in claim.lineages]
    if experiment.published:
        texts += [row["lineage"] for row in published.cells(Path(experiment.published))]
    return texts


def _headings(artifact: AnyArtifact | None) -> dict[str, str]:
    """Return heading -> benchmarks, joined by a space, of a table's columns that have a heading of their own."""
    columns = artifact.columns if isinstance(artifact, TableArtifact) else ()
    specs = [spec for spec in columns if isinstance(spec, ColumnSpec)]
    return {
        spec.label: " ".join(study.benchmarks_in(spec)) for spec in specs if spec.items == "all" and spec.metric is None
    }


def results_recipe(experiment: Experiment) -> recipes.ResultsRecipe:
    """Return the recipe of the tidy results."""
    return recipes.ResultsRecipe(
        experiment=experiment.name, columns=tuple(column(experiment, name) for name in experiment.benchmarks)
    )


def index_recipe(experiment: Experiment) -> recipes.IndexRecipe:
    """Return the recipe of the study's page."""
    found = [artifact_recipe(experiment, name) for name in experiment.artifacts]
    return recipes.IndexRecipe(
        experiment=experiment.name,
        title=experiment.title or f"Study {experiment.name}",
        abstract=experiment.abstract,
        notice=experiment.notice,
        seeds=experiment.seeds,
        labels={str(run): _label(experiment, run) + _spelled(run) for run in study.runs(experiment)},
        columns=tuple(column(experiment, name) for name in experiment.benchmarks),
        shares=SHARES,
        artifacts=tuple(
            recipes.IndexArtifact(
                name=artifact.name,
                title=artifact.title,
                caption=artifact.caption,
                lineages=tuple(study.lineages(experiment, experiment.artifacts[artifact.name])),
            )
            for artifact in found
        ),
    )


def column(experiment: Experiment, spec: str | ColumnSpec) -> recipes.Column:
    """Return a column; accuracies become percentages."""
    if isinstance(spec, str):
        spec = ColumnSpec(label=experiment.benchmarks[spec].label, benchmark=spec)
    if spec.mean_of:
        members = (column(experiment, name).model_copy(update={"items": spec.items}) for name in spec.mean_of)
        return recipes.Column(label=spec.label, mean_of=tuple(members))
    benchmark = experiment.benchmarks[cast(str, spec.benchmark)]
    harness = isinstance(benchmark, HarnessBenchmark)
    return recipes.Column(
        label=spec.label,
        benchmark=spec.benchmark,
        metric=spec.metric or benchmark.metric,
        scale=100.0 if (spec.metric or benchmark.metric) in SHARES else 1.0,
        aggregate=benchmark.aggregate if harness else "items",
        items=spec.items,
    )


def _split(experiment: Experiment, artifact: AnyArtifact) -> list[str]:
    """Return what a caption says about seen items, where a column asks for them."""
    if not splits_items(artifact):
        return []
    return [
        f"Seen: items whose question is in the training rows of {' or '.join(study.datasets(experiment, artifact))}."
    ]


def _judged_by(experiment: Experiment, artifact: AnyArtifact) -> Iterator[str]:
    """Yield who judges each judged column: scores of different judges do not compare."""
    for name, item in experiment.benchmarks.items():
        if name in study.benchmarks(artifact) and isinstance(item, JudgedBenchmark):
            model = experiment.judges[item.judge].model
            yield f"{item.label} is judged by {item.judge}{f' ({model})' if model and model != item.judge else ''}."


def choices_of_ours(experiment: Experiment, artifact: AnyArtifact) -> list[str]:
    """Return what the paper does not state, or has lost, in an artifact, its stages and its benchmarks."""
    stages = {stage.name for text in study.lineages(experiment, artifact) for stage in Lineage.parse(text).stages}
    choices = list(artifact.ours)
    choices += [
        f"{name}: {what}" for name in experiment.stages if name in stages for what in experiment.stages[name].ours
    ]
    labels: dict[str, list[str]] = {}
    for name in study.benchmarks(artifact):
        item = experiment.benchmarks[name]
        for what in item.ours if isinstance(item, HarnessBenchmark) else ():
            labels.setdefault(what, []).append(item.label)
    return choices + [f"{what} of {', '.join(sorted(found))}" for what, found in sorted(labels.items())]
