# Helpers for the rules. Nothing here decides what the study needs: trialign.study does.
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from trialign import config as configuration
from trialign import paths, study
from trialign.errors import UserError

paths.find_commands()
ENVIRONMENT = "../../environment.yml"


def checked(function, *arguments):
    """Call a function; a user's mistake becomes one line of Snakemake's instead of a traceback."""
    try:
        return function(*arguments)
    except UserError as error:
        raise WorkflowError(str(error)) from None


def load_experiment():
    """Check the config, and that the results tree and the targets are this experiment's."""
    loaded = configuration.load(config)
    study.check_tree(loaded)
    # Snakemake does not know its targets yet when it reads the Snakefile
    study.check_targets(loaded, [argument for argument in sys.argv[1:] if "/" in argument])
    return loaded


experiment = checked(load_experiment)
stamp = study.stamp


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


def results_root(wildcards):
    """The results tree: a function, since a plain prefix of the outputs would be taken for a hardcoded one."""
    return experiment.results_dir


def recipe(function, *names):
    """A params function: the canonical recipe that `function(experiment, *wildcards)` returns."""

    def of(wildcards):
        values = [convert(name, getattr(wildcards, name)) for name in names]
        return checked(lambda: function(experiment, *values).canonical())

    return of


def convert(name, value):
    """Wildcards are text: lineages and seeds become what they are."""
    if name == "lineage":
        lineage = experiment.lineage(value)
        if str(lineage) != value:
            raise UserError(
                f"'{value}' is not the canonical name of this run: ask for '{lineage}'"
            )
        return lineage
    return int(value) if name == "seed" else value


def resources_of(kind):
    """The resources of a kind of job."""
    return getattr(experiment.resources, kind)


def tokenizer_source(model):
    """The tokenizer step's input, as name=path."""
    kind, source = study.tokenizer_source(experiment, model)
    return f"{kind}={study.source_path(experiment, source)}"


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

    return of


def parent_model(wildcards):
    """The model folder of the parent lineage, same seed."""
    parent = convert("lineage", wildcards.lineage).parent
    return study.fill(experiment, paths.MODEL, lineage=parent, seed=wildcards.seed)


def stage_data(wildcards):
    """The name of the data set that the last stage reads."""
    return experiment.preset(convert("lineage", wildcards.lineage).last).data


def suite_inputs(suite):
    """What must exist before a suite's data is there."""
    return [
        study.source_input(experiment, source)
        for source in study.sources_of_suite(experiment, suite).values()
    ]


def suite_data(suite):
    """The evaluation step's data inputs, as name=path."""
    sources = study.sources_of_suite(experiment, suite)
    return [
        f"data.{name}={study.source_path(experiment, source)}"
        for name, source in sources.items()
    ]
