"""What an experiment needs: lineages and suites of artifacts, the paths of their results, the recipe of each step.

The recipes of artifacts themselves are in `artifacts`. The Snakefile asks this module and holds no logic of its own.
Paths are relative to the repository, below `experiment.results_dir`. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar, cast

from trialign import claims, lock, methods, paths, recipes
from trialign.artifact_settings import (
    FIGURES,
    AnyArtifact,
    ClaimsArtifact,
    ColumnSpec,
    CurvesArtifact,
    DistributionsArtifact,
    FactsArtifact,
    ForestArtifact,
    GridArtifact,
    PivotArtifact,
    TableArtifact,
    grid_lineages,
    splits_items,
)
from trialign.config import Experiment
from trialign.errors import UserError, nearest
from trialign.lineage import Lineage, Stage, spell
from trialign.settings import (
    ChatRules,
    FeedbackRules,
    HarnessBenchmark,
    HarnessTask,
    HubRepository,
    JudgedBenchmark,
    JudgeRules,
    LocalFolder,
    Settings,
    Source,
    WebFiles,
    WorldPart,
)

# the rules, which are targets without a folder
RULES = (
    "all", "answer", "choose", "claims", "downloads", "evaluate", "facts", "fetch", "figure", "import_model", "index",
    "judge", "overlap", "prepare", "pretrain", "reference", "results", "table", "tokenizer", "tokens", "train", "world",
)  # fmt: skip
S = TypeVar("S", bound=Settings)


# --- the results tree -------------------------------------------------------------------------------------------------


def check_tree(experiment: Experiment) -> None:
    """Refuse a results tree that belongs to another experiment: two of them never meet in one tree."""
    stamp_file = Path(experiment.results_dir) / paths.STAMP
    if stamp_file.is_file():
        owner = json.loads(stamp_file.read_text())["name"]
        if owner != experiment.name:
            raise UserError(
                f"config: results_dir: '{experiment.results_dir}' holds the results of experiment '{owner}', not of "
                f"'{experiment.name}': give another results_dir, or --profile profiles/{owner} if you meant that one"
            )


def check_targets(experiment: Experiment, targets: Iterable[str], named: Iterable[str] = ()) -> None:
    """Refuse targets that this experiment cannot make, with what was probably meant.

    That is a file of another experiment's tree (results/demo/table1.csv under the paper's config), an artifact that is
    not declared or is meant by its bare name, and a run whose name is not canonical. targets: words that may be targets
    or values of options; named: words that are targets for certain.
    """
    for target in named:
        meant = _meant(experiment, target) if "/" not in target and target not in RULES else None
        if meant:
            raise UserError(f"nothing makes '{target}' (did you mean '{meant}'?)")
    root = Path(experiment.results_dir)
    for target in map(Path, targets):
        if root in target.parents:
            _check_target(experiment, target.relative_to(root), target)
        elif target.parts[:1] == ("results",):
            raise UserError(f"'{target}' is not in this experiment's results ('{root}'){_owner(target)}")


def _check_target(experiment: Experiment, place: Path, target: Path) -> None:
    if place.parts[0] == "runs" and len(place.parts) > 1:
        canonical(experiment, place.parts[1])
    elif len(place.parts) == 1 and place.suffix:
        files = [Path(file).name for name in experiment.artifacts for file in artifact_files(experiment, name)]
        if place.name not in [*files, "results.csv", "index.html"]:
            meant = [f"{experiment.results_dir}/{file}" for file in files]
            raise UserError(f"no artifact makes '{target}'{nearest(str(target), meant)}")
    elif _owner(target):
        raise UserError(f"'{target}' is not in this experiment's results ('{experiment.results_dir}'){_owner(target)}")
    elif len(place.parts) == 1 and (meant := _meant(experiment, place.name)):
        raise UserError(f"no artifact makes '{target}' (did you mean '{meant}'?)")


def _meant(experiment: Experiment, name: str) -> str | None:
    """Return the first file of the artifact that a name without a folder or a suffix is, or is close to."""
    close = difflib.get_close_matches(name.partition(".")[0], experiment.artifacts, n=1)
    return artifact_files(experiment, close[0])[0] if close else None


def canonical(experiment: Experiment, text: str) -> Lineage:
    """Return the lineage of a run's name; UserError with the right name where it is spelled another way."""
    lineage = experiment.lineage(text)
    if str(lineage) != text:
        raise UserError(f"'{text}' is not the canonical name of this run: ask for '{lineage}'")
    return lineage


def _owner(target: Path) -> str:
    names = (part for part in target.parts[1:-1] if (Path("profiles") / part / "config.yaml").is_file())
    owner = next(names, None)
    return f": if you mean experiment '{owner}', add --profile profiles/{owner}" if owner else ""


def stamp(experiment: Experiment) -> None:
    """Mark a results tree as this experiment's; write down its config, its endpoints, what trainings report to."""
    root = Path(experiment.results_dir)
    _write_json(root / paths.STAMP, {"name": experiment.name})
    _write_json(root / paths.SHARED / paths.CONFIG, experiment.model_dump(mode="json"))
    write_endpoints(experiment)
    _write_json(root / paths.SHARED / paths.TRACKING, list(experiment.tracking))


def write_endpoints(experiment: Experiment) -> None:
    """Write down how judges are reached, for the steps: in no recipe, for no score depends on it."""
    endpoints = {name: judge.endpoint.model_dump(mode="json") for name, judge in experiment.judges.items()}
    _write_json(Path(experiment.results_dir) / paths.SHARED / paths.ENDPOINTS, endpoints)


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(value) + "\n")
    draft.rename(path)


# --- what an artifact needs -------------------------------------------------------------------------------------------


def lineages(experiment: Experiment, artifact: AnyArtifact) -> list[str]:
    """Return the canonical lineages of an artifact's rows, each once, in order; of claims, of those that are run."""
    match artifact:
        case ClaimsArtifact():
            return list(dict.fromkeys(lineage for lineage, _ in _claimed(experiment, artifact)))
        case TableArtifact() | CurvesArtifact():
            texts = list(artifact.rows)
        case ForestArtifact():
            texts = [artifact.baseline, *artifact.rows]
        case PivotArtifact():
            texts = [f"{row}+{stages}" for row in artifact.rows.values() for stages in artifact.columns.values()]
        case GridArtifact():
            texts = [artifact.baseline, *grid_lineages(artifact)]
        case FactsArtifact():
            texts = [artifact.lineage]
        case DistributionsArtifact():
            texts = []
    return list(dict.fromkeys(str(experiment.lineage(text)) for text in texts))


def suites(experiment: Experiment, artifact: AnyArtifact) -> list[str]:
    """Return the suites that an artifact's columns need, in the config's order of benchmarks."""
    needed = benchmarks(artifact)
    return list(dict.fromkeys(item.suite for name, item in experiment.benchmarks.items() if name in needed))


def benchmarks(artifact: AnyArtifact) -> set[str]:
    """Return the benchmarks that an artifact's columns show."""
    match artifact:
        case PivotArtifact():
            specs: Sequence[str | ColumnSpec] = (artifact.benchmark,)
        case FactsArtifact():
            specs = artifact.benchmarks
        case CurvesArtifact() | DistributionsArtifact():
            specs = ()
        case ClaimsArtifact():
            found = claims.read(Path(artifact.file))
            specs = [name for claim in found if claim.kind != "orders" for name in claim.benchmarks]
        case _:
            specs = artifact.columns
    return {name for spec in specs for name in benchmarks_in(spec)}


def results(experiment: Experiment, artifacts: Iterable[AnyArtifact]) -> list[str]:
    """Return the suite folders that artifacts need, over all seeds, each once."""
    found = [
        suite_path(experiment, lineage, seed, suite)
        for artifact in artifacts
        for lineage, needed in _needs(experiment, artifact)
        for seed in experiment.seeds
        for suite in needed
    ]
    return list(dict.fromkeys(found))


def runs(experiment: Experiment) -> list[Lineage]:
    """Return the lineages behind all artifacts, each after those that it is made of, back to what is imported."""
    published, found = imported(experiment), dict[Lineage, None]()

    def add(lineage: Lineage) -> None:
        if str(lineage) not in published and lineage.parent:
            add(lineage.parent)
            for candidate in experiment.candidates(lineage):
                add(candidate)
        found[lineage] = None

    for artifact in experiment.artifacts.values():
        for text in lineages(experiment, artifact):
            add(Lineage.parse(text))
    return list(found)


def index_inputs(experiment: Experiment) -> dict[str, list[str]]:
    """Return what the study's page is made of: the inputs of its step, by name."""
    behind, published = runs(experiment), imported(experiment)
    own = [(run.base, experiment.preset(run.last).data) for run in behind if run.last and str(run) not in published]
    return {
        "artifacts": [file for name in experiment.artifacts for file in artifact_files(experiment, name)],
        "results": [fill(experiment, "<results>/results.csv")],
        "runs": [
            fill(experiment, paths.RUN_JSON, lineage=run, seed=seed) for run in behind for seed in experiment.seeds
        ],
        "suites": results(experiment, experiment.artifacts.values()),
        "cards": [
            *(fill(experiment, paths.PREPARED, data=data) for data in dict.fromkeys(data for _, data in own)),
            *(fill(experiment, paths.TOKENS, model=model, data=data) for model, data in dict.fromkeys(own)),
        ],
    }


def _needs(experiment: Experiment, artifact: AnyArtifact) -> list[tuple[str, list[str]]]:
    """Return (lineage, the suites that an artifact needs of it)."""
    if isinstance(artifact, ClaimsArtifact):
        return [(lineage, [experiment.benchmarks[name].suite]) for lineage, name in _claimed(experiment, artifact)]
    needed = suites(experiment, artifact)
    return [(lineage, needed) for lineage in lineages(experiment, artifact)]


def datasets(experiment: Experiment, artifact: AnyArtifact) -> list[str]:
    """Return the data sets that an artifact's lineages are trained on (an imported stage: as its preset says)."""
    stages = [stage for text in lineages(experiment, artifact) for stage in Lineage.parse(text).stages]
    return list(dict.fromkeys(experiment.preset(stage).data for stage in stages))


def overlaps(experiment: Experiment, artifact: AnyArtifact) -> list[str]:
    """Return the overlaps that an artifact needs: none unless a column asks for seen or unseen items."""
    asked = datasets(experiment, artifact) if splits_items(artifact) else []
    return [fill(experiment, paths.OVERLAP, data=name) for name in asked]


def shown_runs(experiment: Experiment, artifact: AnyArtifact) -> list[str]:
    """Return the records of the runs whose logs an artifact shows."""
    rows = lineages(experiment, artifact) if isinstance(artifact, CurvesArtifact) else []
    return [
        fill(experiment, paths.RUN_JSON, lineage=lineage, seed=seed) for lineage in rows for seed in experiment.seeds
    ]


def prepared(experiment: Experiment, artifact: AnyArtifact) -> list[str]:
    """Return the prepared data sets that an artifact shows."""
    names = artifact.data if isinstance(artifact, DistributionsArtifact) else ()
    return [fill(experiment, paths.PREPARED, data=name) for name in names]


def tokens(experiment: Experiment, artifact: AnyArtifact) -> list[str]:
    """Return the tokens of data sets that an artifact counts."""
    if not isinstance(artifact, DistributionsArtifact) or artifact.model is None:
        return []
    return [fill(experiment, paths.TOKENS, model=artifact.model, data=name) for name in artifact.data]


def suite_path(experiment: Experiment, lineage: str, seed: int | str, suite: str) -> str:
    """Return the folder of a suite's results: for a judged suite, the judge's."""
    return fill(experiment, paths.SUITE, lineage=lineage, seed=seed, suite=suite)


def fill(experiment: Experiment, pattern: str, **values: object) -> str:
    """Fill a pattern of `paths` for this experiment."""
    return pattern.replace("<results>", experiment.results_dir).format(**values)


def artifact_files(experiment: Experiment, name: str) -> list[str]:
    """Return the files of an artifact."""
    kind = experiment.artifacts[name].kind
    forms = ("csv", "png", "svg", "pdf") if kind in FIGURES else ("csv", "md", "tex", "html")
    numbers = ("cells.csv", "pairs.csv") if kind in ("table", "pivot") else ()
    return [f"{experiment.results_dir}/{name}.{form}" for form in forms + numbers]


def benchmarks_in(spec: str | ColumnSpec) -> Sequence[str]:
    """Return the benchmarks of a column."""
    if isinstance(spec, str):
        return (spec,)
    return spec.mean_of or (cast(str, spec.benchmark),)


# --- where inputs come from -------------------------------------------------------------------------------------------


def source_input(experiment: Experiment, name: str) -> str:
    """Return the path whose existence means that a source is there: what a rule declares as its input."""
    match experiment.sources[name]:
        case WorldPart():
            return fill(experiment, paths.WORLD)
        case LocalFolder(path=path):
            return path
        case _:
            return fill(experiment, paths.SOURCE, source=name)


def benchmark_sources(experiment: Experiment) -> list[str]:
    """Return what must exist before the data of all benchmarks is there."""
    return list(dict.fromkeys(source_input(experiment, item.source) for item in experiment.benchmarks.values()))


def source_path(experiment: Experiment, name: str) -> str:
    """Return the folder of a source."""
    base = source_input(experiment, name)
    match experiment.sources[name]:
        case WorldPart(part=part):
            return f"{base}/{part}"
        case HubRepository(folder=folder) if folder:
            return f"{base}/{folder}"
    return base


def tokenizer_source(experiment: Experiment, model: str) -> tuple[str, str]:
    """Return what a model's tokenizer is made of: ("model", its source) or ("corpus", the source to train it on)."""
    settings = experiment.models[model]
    return ("model", settings.source) if settings.source else ("corpus", cast(str, settings.corpus))


def imported(experiment: Experiment) -> dict[str, str]:
    """Return lineage -> source of every model that is taken as published: bases and imported stages."""
    bases = {name: model.source for name, model in experiment.models.items() if model.source}
    stages = {
        f"{model}+{name}": source
        for name, preset in experiment.stages.items()
        for model, source in preset.imported.items()
    }
    return bases | stages


def harness_suites(experiment: Experiment) -> list[str]:
    """Return the suites that the harness evaluates."""
    return list(
        dict.fromkeys(item.suite for item in experiment.benchmarks.values() if isinstance(item, HarnessBenchmark))
    )


def benchmarks_of(experiment: Experiment, suite: str, lineage: str) -> dict[str, HarnessBenchmark]:
    """Return the harness benchmarks of a suite that any artifact of the config asks of a lineage.

    It does not depend on the target, so that another target never evaluates again; a lineage that no artifact names
    gets the whole suite.
    """
    items = experiment.benchmarks.items()
    of_suite = {name: item for name, item in items if isinstance(item, HarnessBenchmark) and item.suite == suite}
    asked = _asked(experiment).get(lineage, set())
    return {name: item for name, item in of_suite.items() if name in asked} or of_suite


@lru_cache(maxsize=8)
def _asked(experiment: Experiment) -> dict[str, set[str]]:
    """Return lineage -> the benchmarks that the artifacts ask of it: once, for the DAG asks for each of its jobs."""
    asked: dict[str, set[str]] = {}
    for artifact in experiment.artifacts.values():
        if isinstance(artifact, ClaimsArtifact):  # it asks for nothing: it reads what the others ask for
            continue
        for lineage in lineages(experiment, artifact):
            asked.setdefault(lineage, set()).update(benchmarks(artifact))
    return asked


def question_sources(experiment: Experiment) -> list[str]:
    """Return the source of the judged questions, alone in a list; an empty one where no benchmark is judged."""
    judged = [item.source for item in experiment.benchmarks.values() if isinstance(item, JudgedBenchmark)]
    return judged[:1]


def judges(experiment: Experiment) -> dict[str, str]:
    """Return judge -> benchmark, of the judges that judge one."""
    items = experiment.benchmarks.items()
    return {item.judge: name for name, item in items if isinstance(item, JudgedBenchmark)}


# --- recipes ----------------------------------------------------------------------------------------------------------


def world_recipe(experiment: Experiment) -> recipes.WorldRecipe:
    """Return the recipe of the demo world."""
    if experiment.world is None:
        raise UserError(f"experiment '{experiment.name}' has no demo world")
    return recipes.WorldRecipe(settings=experiment.world)


def fetch_recipe(experiment: Experiment, source: str) -> recipes.FetchRecipe | recipes.WebRecipe:
    """Return the recipe of a download, at the commit and with the hashes of the lock."""
    place = experiment.sources[source]
    entry = locked(experiment, place)
    if isinstance(place, WebFiles):
        return recipes.WebRecipe(source=place.model_copy(update={"files": entry.files}) if entry else place)
    if not isinstance(place, HubRepository):
        raise UserError(f"source '{source}' is not on the hub: there is nothing to download")
    if entry is None:
        return recipes.FetchRecipe(repository=place)
    return recipes.FetchRecipe(repository=place, commit=entry.commit, files=entry.files)


def locked(experiment: Experiment, source: Source) -> lock.Locked | lock.LockedFiles | None:
    """Return what the lock says of a source; None where it is not locked, or nothing to lock."""
    if not isinstance(source, HubRepository | WebFiles):
        return None
    return _lock(experiment).of(source, folder=_from_folder(experiment))


def check_lock(experiment: Experiment, names: Collection[str]) -> None:
    """Refuse to run with downloads that are not locked, where the experiment names a lock. names: of the sources."""
    if experiment.lock is None:
        return
    sources = {name: source for name, source in downloads(experiment).items() if name in names}
    if missing := lock.unlocked(_lock(experiment), sources, folder=_from_folder(experiment)):
        raise lock.refusal(missing, experiment.lock)


def downloads(experiment: Experiment) -> dict[str, HubRepository | WebFiles]:
    """Return the sources of hub and web that a model, a stage, a data set or a benchmark reads, by name."""
    named = [model.source for model in experiment.models.values()]
    named += [source for preset in experiment.stages.values() for source in preset.imported.values()]
    named += [item.source for item in (*experiment.data.values(), *experiment.benchmarks.values())]
    sources = experiment.sources.items()
    return {name: source for name, source in sources if name in named and isinstance(source, HubRepository | WebFiles)}


def downloads_needed(experiment: Experiment) -> list[str]:
    """Return the sources of hub and web that the artifacts need, by name: what `all` downloads, and nothing else."""
    named: set[str] = set()
    for artifact in experiment.artifacts.values():
        for text in lineages(experiment, artifact):
            named |= _read_by(experiment, Lineage.parse(text))
        named |= {item.source for name, item in experiment.benchmarks.items() if name in benchmarks(artifact)}
        if overlaps(experiment, artifact):
            named |= {item.source for item in experiment.benchmarks.values()}
            named |= {experiment.data[name].source for name in datasets(experiment, artifact)}
        if isinstance(artifact, DistributionsArtifact):
            named |= {experiment.data[name].source for name in artifact.data}
            named |= {experiment.models[artifact.model].source or ""} if artifact.model else set()
    return [name for name in downloads(experiment) if name in named]


def _read_by(experiment: Experiment, lineage: Lineage) -> set[str]:
    """Return the sources that a run is made of, back to what is taken as published."""
    base, published = experiment.models[lineage.base], imported(experiment)
    named = {base.source or ""}  # its tokenizer is that of all stages after it
    while str(lineage) not in published and lineage.last and lineage.parent:
        named.add(experiment.data[experiment.preset(lineage.last).data].source)
        lineage = lineage.parent
    return named | {published.get(str(lineage), "")}


def _from_folder(experiment: Experiment) -> bool:
    return lock.folder_of(experiment.mirror) is not None


@lru_cache(maxsize=8)
def _lock(experiment: Experiment) -> lock.Lock:
    return lock.read(Path(experiment.lock)) if experiment.lock else lock.Lock()


def tokenizer_recipe(experiment: Experiment, model: str) -> recipes.TokenizerRecipe:
    """Return the recipe of a model's tokenizer."""
    settings = experiment.models[model]
    return recipes.TokenizerRecipe(vocab_size=settings.vocab_size, chat_template=settings.chat_template)


def pretrain_recipe(experiment: Experiment, base: Lineage, seed: int) -> recipes.PretrainRecipe:
    """Return the recipe of a tiny base model."""
    settings = experiment.models[base.base].pretrain
    if settings is None:
        raise UserError(
            f"model '{base}' is not pre-trained here: it comes from '{experiment.models[base.base].source}'"
        )
    return recipes.PretrainRecipe(settings=settings, seed=seed)


def import_recipe(experiment: Experiment) -> recipes.ImportRecipe:
    """Return the recipe that makes a run of a published model."""
    return recipes.ImportRecipe()


def data_recipe(experiment: Experiment, name: str) -> recipes.ChatRecipe | recipes.TriplesRecipe:
    """Return the recipe of a prepared data set."""
    data = experiment.data[name]
    if data.kind == "chat":
        return recipes.ChatRecipe(data=_only(ChatRules, data))
    return recipes.TriplesRecipe(data=_only(FeedbackRules, data))


def tokens_recipe(experiment: Experiment, model: str, name: str) -> recipes.TokensRecipe:
    """Return the recipe of a data set's tokens for a model family."""
    data = experiment.data[name]
    return recipes.TokensRecipe(
        kind=data.kind,
        bos=experiment.models[model].bos,
        max_length=data.max_length,
        max_prompt_length=data.max_prompt_length if data.kind == "triples" else data.max_length,
    )


def overlap_recipe(experiment: Experiment, name: str) -> recipes.OverlapRecipe:
    """Return the recipe of the search for all benchmarks' questions in a data set.

    Shots and limits shape scores, not questions: they are left out, so that changing one searches nothing again.
    """
    items = experiment.benchmarks.items()
    harness = {key: item for key, item in items if isinstance(item, HarnessBenchmark)}
    whole = {"shots": 0, "limit": None}
    return recipes.OverlapRecipe(
        kind=experiment.data[name].kind,
        harness={key: _only(HarnessTask, item).model_copy(update=whole) for key, item in harness.items()},
        fields={key: item.question for key, item in harness.items() if item.question},
        judged=tuple(key for key, item in items if isinstance(item, JudgedBenchmark)),
    )


def train_recipe(experiment: Experiment, lineage: Lineage, seed: int) -> recipes.TrainRecipe:
    """Return the recipe of a lineage's last stage."""
    stage, parent = lineage.last, lineage.parent
    if stage is None or parent is None:
        raise UserError(f"'{lineage}' is a base model: no stage trains it")
    return recipes.TrainRecipe(
        method=experiment.preset(stage).method,
        params=experiment.params(stage).model_dump(),
        view=experiment.view(parent, stage),
        training=experiment.training_of(stage),
        seed=seed,
    )


def choosing_stages(experiment: Experiment) -> list[str]:
    """Return the stages that choose one of several candidates in place of training."""
    return [name for name, preset in experiment.stages.items() if preset.candidates]


def choose_recipe(experiment: Experiment, lineage: Lineage) -> recipes.ChooseRecipe:
    """Return the recipe of a lineage's last stage, which chooses one of several candidates."""
    stage = cast(Stage, lineage.last)
    candidates = tuple(str(candidate.last) for candidate in experiment.candidates(lineage))
    return recipes.ChooseRecipe(method=experiment.preset(stage).method, candidates=candidates)


def reading(experiment: Experiment, lineage: Lineage) -> str | None:
    """Return what the last stage needs of its parent's log-probabilities, as in `readings`; None: nothing.

    Only the packed engine needs them: stock TRL holds the parent as a second model.
    """
    stage, parent = lineage.last, lineage.parent
    if stage is None or parent is None:
        return None
    method, training = methods.get(experiment.preset(stage).method), experiment.training_of(stage)
    if training.engine != "packed" or not method.needs_reference:
        return None
    mismatched = ".mismatched" if method.reads_mismatched else ""
    return f"{experiment.view(parent, stage)}.{training.precision}{mismatched}"


def readings() -> dict[str, recipes.ReferenceRecipe]:
    """Return name -> recipe of all log-probabilities that a stage may need of its parent."""
    return {
        f"{view}.{precision}{'.mismatched' if mismatched else ''}": recipes.ReferenceRecipe(
            view=view, mismatched=mismatched, precision=precision
        )
        for view in methods.PAIRS
        for precision in ("bf16", "fp32")
        for mismatched in (False, True)
    }


def reference_recipe(experiment: Experiment, reading: str) -> recipes.ReferenceRecipe:
    """Return the recipe of a model's log-probabilities."""
    return readings()[reading]


def train_gpus(experiment: Experiment, lineage: Lineage) -> int:
    """Return the GPUs of a training, of all its nodes: one where the method's batch must be whole on one device."""
    gpus = experiment.resources.train.gpus_in_all
    return min(gpus, 1) if _keeps_batch_whole(experiment, lineage) else gpus


def train_nodes(experiment: Experiment, lineage: Lineage) -> int:
    """Return the nodes of a training, each with as many GPUs: one where the batch must be whole on one device."""
    return 1 if _keeps_batch_whole(experiment, lineage) else experiment.resources.train.nodes


def _keeps_batch_whole(experiment: Experiment, lineage: Lineage) -> bool:
    stage = cast(Stage, lineage.last)
    return methods.get(experiment.preset(stage).method).micro_batch_is_global and (
        experiment.training_of(stage).engine == "trl"
    )


def evaluate_recipe(experiment: Experiment, lineage: Lineage, suite: str) -> recipes.EvaluateRecipe:
    """Return the recipe of a harness suite on a lineage's model: the benchmarks that any artifact asks of it."""
    benchmarks = benchmarks_of(experiment, suite, str(lineage))
    return recipes.EvaluateRecipe(
        benchmarks={name: _only(HarnessTask, item) for name, item in benchmarks.items()},
        bos=experiment.models[lineage.base].bos,
        batch_size=experiment.eval_batch_size,
    )


def answer_recipe(experiment: Experiment, lineage: Lineage, seed: int) -> recipes.AnswerRecipe:
    """Return the recipe of a lineage's answers; UserError where no benchmark is judged."""
    if not question_sources(experiment):
        raise UserError("config: benchmarks: none is judged (kind: judged), so there are no questions to answer")
    return recipes.AnswerRecipe(answers=experiment.answers, bos=experiment.models[lineage.base].bos, seed=seed)


def judge_recipe(experiment: Experiment, judge: str) -> recipes.JudgeRecipe:
    """Return the recipe of judging by a judge that a benchmark names."""
    return recipes.JudgeRecipe(
        name=judge, benchmark=judges(experiment)[judge], judge=_only(JudgeRules, experiment.judges[judge])
    )


def _only(rules: type[S], settings: Settings) -> S:
    """Return the part of the settings that shapes a step's output: labels and names of sources do not."""
    return rules(**{name: getattr(settings, name) for name in rules.model_fields})


# --- claims -----------------------------------------------------------------------------------------------------------


def claims_of(experiment: Experiment, artifact: ClaimsArtifact) -> list[claims.Claim]:
    """Return the claims with this experiment's lineages, canonical where it has their models and stages."""
    found = claims.read(Path(artifact.file))
    names = names_in_claims(experiment, artifact, [text for claim in found for text in claim.lineages])
    return [claim.renamed(names) for claim in found]


def names_in_claims(experiment: Experiment, artifact: ClaimsArtifact, texts: Iterable[str]) -> dict[str, str]:
    """Return lineage, as a file spells it -> this experiment's, where that is another text."""
    stands = {text: artifact.instead.get(text, text) for text in texts}
    names = {text: str(experiment.lineage(other)) for text, other in stands.items() if not experiment.lacks(other)}
    return {text: name for text, name in names.items() if text != name}


def _claimed(experiment: Experiment, artifact: ClaimsArtifact) -> list[tuple[str, str]]:
    """Return (lineage, benchmark) of all claims that are run, each once."""
    found = claims_of(experiment, artifact)
    figures = figures_of_claims(experiment, found)
    needed: dict[tuple[str, str], None] = {}
    for claim in found:
        grid = claim.grid(figures)
        if not why_not_run(experiment, claim, grid):
            needed |= {(lineage, name): None for lineage in _compared(claim, grid) for name in claim.benchmarks}
    return list(needed)


def figures_of_claims(experiment: Experiment, found: Sequence[claims.Claim]) -> dict[str, dict[str, dict[str, str]]]:
    """Return the points of the figures that claims are about: figure -> alpha -> beta -> lineage."""
    named = {name: experiment.artifacts.get(name) for claim in found if claim.of_grid for name in claim.artifacts}
    return {name: grid_cells(experiment, item) for name, item in named.items() if isinstance(item, GridArtifact)}


def grid_cells(experiment: Experiment, artifact: GridArtifact) -> dict[str, dict[str, str]]:
    """Return the points of a figure: alpha -> beta -> lineage."""
    grid = iter(grid_lineages(artifact))
    return {
        spell(alpha): {spell(beta): str(experiment.lineage(next(grid))) for beta in artifact.beta}
        for alpha in artifact.alpha
    }


def _compared(claim: claims.Claim, grid: dict[str, dict[str, str]]) -> list[str]:
    """Return the lineages of a claim, those of its figure included."""
    return list(dict.fromkeys([*claim.lineages, *(lineage for row in grid.values() for lineage in row.values())]))


def why_not_run(experiment: Experiment, claim: claims.Claim, grid: dict[str, dict[str, str]]) -> str:
    """Return why a claim is not run; empty where it is."""
    if claim.kind == "orders":
        return "it is about the paper's settings: nothing is measured"
    for lineage in claim.lineages:
        if reason := experiment.lacks(lineage):
            return f"{reason} in this experiment"
    if claim.of_grid and not grid:
        return f"no figure over alpha and beta is called {' or '.join(claim.artifacts)} here"
    if claim.of_grid and claim.kind != "larger effect" and not claim.comparisons(_compared(claim, grid)):
        return "the figure has no other point"
    if claim.kind == "larger effect" and (len(grid) < 2 or len(next(iter(grid.values()))) < 2):
        return "the figure has a single value of alpha or of beta"
    asked = _asked(experiment)
    lacking = [
        f"{experiment.benchmarks[name].label} of {lineage}"
        for lineage in _compared(claim, grid)
        for name in claim.benchmarks
        if name not in asked.get(lineage, ())
    ]
    more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
    return f"no other artifact asks for {lacking[0]}{more}" if lacking else ""
