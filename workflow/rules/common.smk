# Helpers for the rules. Nothing here decides what the study needs: trialign.study does.
import gc
import inspect
import re
import sys
from functools import cache
from pathlib import Path

from snakemake.common import overwrite_function_params

from trialign import config as configuration
from trialign import artifacts, controller, known, lock, paths, preflight, study
from trialign.errors import UserError

# Jobs and files live until the end: looking through 10,000 of them for garbage again and again takes a tenth of -n.
gc.set_threshold(200_000, 20, 100)
paths.find_commands()
ENVIRONMENT = "../../environment.yml"


def checked(function, *arguments):
    """Call a function; a user's mistake ends Snakemake with one line."""
    try:
        return function(*arguments)
    except UserError as error:
        raise SystemExit(f"trialign: {error}") from None


def load_experiment():
    """Check the config, and that the results tree and the targets are this experiment's."""
    loaded = configuration.load(config)
    lock.use_mirror(loaded.mirror)
    study.check_tree(loaded)
    # Snakemake does not know its targets yet when it reads the Snakefile; an option's value is no target
    pairs = zip(sys.argv, sys.argv[1:])
    study.check_targets(
        loaded,
        [word for option, word in pairs if option not in ("--report", "--configfile")],
        sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else (),
    )
    return loaded


if workflow.is_main_process:
    for line in controller.clear_dead_locks():
        print(f"note: {line}", file=sys.stderr)

experiment = checked(load_experiment)
stamp = study.stamp
# What is the same for all jobs is no function: each costs a tenth of a millisecond a job. Lists, since a plain prefix of
# the outputs would be taken for a hardcoded one.
ROOT = [experiment.results_dir]
QUESTIONS = [
    study.source_path(experiment, source)
    for source in study.question_sources(experiment)
]
QUESTIONS_INPUT = [
    study.source_input(experiment, source)
    for source in study.question_sources(experiment)
]


def signed(function):
    """A function with its parameters beside it: Snakemake asks for them 300,000 times for 10,000 jobs."""
    overwrite_function_params(function, inspect.signature(function).parameters)
    return function


def any_of(names):
    """A wildcard constraint: exactly these names, or nothing at all."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


def of_kind(*kinds):
    """The artifacts of these kinds, as a wildcard constraint."""
    return any_of(
        name
        for name, artifact in experiment.artifacts.items()
        if artifact.kind in kinds
    )


def recipe(function, *names):
    """A params function: the canonical recipe that `function(experiment, *wildcards)` returns."""

    @cache
    def canonical(*values):
        return checked(lambda: function(experiment, *values).canonical())

    def of(wildcards):
        return canonical(*(convert(name, getattr(wildcards, name)) for name in names))

    return signed(of)


def convert(name, value):
    """Wildcards are text: lineages and seeds become what they are."""
    if name == "lineage":
        return study.canonical(experiment, value)
    return int(value) if name == "seed" else value


# In Snakemake's report each entry has one label: of several, its page makes a switch of any that has two values, and
# breaks where there is no entry for each combination.
@signed
def artifact_label(wildcards):
    """What Snakemake's report lists an artifact by."""
    (name,) = dict(wildcards).values()
    return {"artifact": f"{experiment.artifacts[name].title} ({name})"}


def run_report(file):
    """A run's record, as Snakemake's report lists it."""
    return report(
        file,
        caption="../report/run.rst",
        category="Runs",
        labels={"run": "{lineage}, seed {seed}"},
    )


def card_report(folder, name):
    """The card of a folder of data, as Snakemake's report lists it."""
    return report(
        directory(folder),
        patterns=["{page,card}.html"],
        caption="../report/card.rst",
        category="Data",
        labels={"card": name},
    )


def resources_of(rule):
    """What the config gives the jobs of a rule."""
    return known.resources(experiment, rule)


def asks(rule):
    """The resources of a rule: what the config gives, and estimates (names and units: known.rule_resources)."""
    given = checked(known.fixed_resources, experiment, rule)
    names = known.resource_names(rule)
    return given | {name: estimated(rule, name) for name in names if name not in given}


def estimated(rule, name):
    """A resource function: one resource of a job, more of some at each attempt."""

    def of(wildcards, attempt):
        return checked(
            lambda: known.rule_resources(experiment, rule, dict(wildcards), attempt)[
                name
            ]
        )

    return signed(of)


@signed
def train_gpus(wildcards):
    """The GPUs of a training, of all its nodes."""
    return study.train_gpus(experiment, convert("lineage", wildcards.lineage))


@signed
def train_nodes(wildcards):
    """The nodes of a training."""
    return study.train_nodes(experiment, convert("lineage", wildcards.lineage))


@signed
def train_processes(wildcards):
    """The processes of a training on each of its nodes, one for each GPU."""
    return max(1, train_gpus(wildcards) // train_nodes(wildcards))


def tokenizer_source(model):
    """The tokenizer step's input, as name=path."""
    kind, source = study.tokenizer_source(experiment, model)
    return f"{kind}={study.source_path(experiment, source)}"


@signed
def base_of(wildcards):
    """The base model of the wildcard's lineage."""
    return experiment.lineage(wildcards.lineage).base


def path(pattern, **fixed):
    """An input function: a path pattern filled from the wildcards and the values given here."""

    def of(wildcards):
        values = {
            name: value(wildcards) if callable(value) else value
            for name, value in fixed.items()
        }
        return checked(
            lambda: study.fill(experiment, pattern, **(dict(wildcards) | values))
        )

    return signed(of)


@signed
def parent_model(wildcards):
    """The model folder of the parent lineage, same seed."""
    parent = convert("lineage", wildcards.lineage).parent
    return study.fill(experiment, paths.MODEL, lineage=parent, seed=wildcards.seed)


def candidates(pattern):
    """An input function: a path of each run that the last stage chooses from, same seed."""

    def of(wildcards):
        found = experiment.candidates(convert("lineage", wildcards.lineage))
        return [
            study.fill(experiment, pattern, lineage=lineage, seed=wildcards.seed)
            for lineage in found
        ]

    return signed(of)


@signed
def parent_reference(wildcards):
    """The parent's log-probabilities, where the stage reads them."""
    lineage = convert("lineage", wildcards.lineage)
    reading = checked(study.reading, experiment, lineage)
    if reading is None:
        return []
    return study.fill(
        experiment,
        paths.REFERENCE,
        lineage=lineage.parent,
        seed=wildcards.seed,
        data=experiment.preset(lineage.last).data,
        reading=reading,
    )


@signed
def named_reference(wildcards, input):
    """The training step's input of log-probabilities, as name=path."""
    return [f"reference={folder}" for folder in [input.reference] if folder]


@signed
def stage_data(wildcards):
    """The name of the data set that the last stage reads."""
    return experiment.preset(convert("lineage", wildcards.lineage).last).data


@signed
def folder_of_record(wildcards, output):
    """Where a step with a model publishes it and its record."""
    return str(Path(output.record).parent)


def named(inputs):
    """The artifact step's inputs, as name=path."""
    return [f"results={folder}" for folder in inputs.results] + [
        f"overlap={folder}" for folder in inputs.overlaps
    ]


def named_of_figure(inputs):
    """A figure's inputs, as name=path: results, or runs and their logs, or data."""
    return (
        named(inputs)
        + [f"run={record}" for record in inputs.runs]
        + [f"data={folder}" for folder in inputs.prepared]
        + [f"tokens={folder}" for folder in inputs.tokens]
    )


@signed
def named_claims(wildcards, input):
    """The claims step's inputs, as name=path."""
    files = [f"claims={input.claims}"]
    if input.published:
        files.append(f"published={input.published}")
    return [f"results={folder}" for folder in input.results] + files


@signed
def suite_inputs(wildcards):
    """What must exist before a suite's data is there."""
    benchmarks = study.benchmarks_of(experiment, wildcards.suite, wildcards.lineage)
    return list(
        dict.fromkeys(
            study.source_input(experiment, item.source) for item in benchmarks.values()
        )
    )


@signed
def suite_data(wildcards):
    """The evaluation step's data inputs, as name=path."""
    return benchmark_data(
        study.benchmarks_of(experiment, wildcards.suite, wildcards.lineage)
    )


def benchmark_data(benchmarks):
    """The data of benchmarks, as name=path."""
    return [
        f"data.{name}={study.source_path(experiment, item.source)}"
        for name, item in benchmarks.items()
    ]
