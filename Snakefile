# The whole study, from a config to its tables and figures.
#
#   snakemake --profile profiles/demo all       the demo on a laptop (or: make demo)
#   snakemake --profile slurm all               the paper's study on a cluster
#   snakemake results/table2.csv                one table and only the runs that it needs (-n first)
#
# Rules hold no logic: what is needed and how each step is made comes from src/trialign/study.py.
from snakemake.utils import min_version

min_version("9.27")


configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"


pathvars:
    results=config["results_dir"],


wildcard_constraints:
    lineage="[^/]+",
    seed=r"\d+",
    model="[a-z][a-z0-9_]*",
    data="[a-z][a-z0-9_]*",


include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


onstart:
    checked(preflight.check_workflow, experiment, workflow)
    checked(preflight.check_lock, experiment, workflow)
    checked(preflight.check_tracking, experiment, workflow)
    stamp(experiment)
    controller.register(workflow.persistence._lockfile.values())


localrules:
    all,
    downloads,
    fetch,
    table,
    figure,
    claims,
    index,
    facts,
    judge,
    results,
    tokenizer,


rule all:
    default_target: True
    input:
        [
            file
            for name in experiment.artifacts
            for file in study.artifact_files(experiment, name)
        ],
        "<results>/results.csv",
        "<results>/index.html",


# For a transfer node: everything that comes from the network, and nothing else.
rule downloads:
    input:
        [
            study.source_input(experiment, name)
            for name in study.downloads_needed(experiment)
        ],
