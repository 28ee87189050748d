# Artifacts: tables, figures, the tidy results.
rule table:
    input:
        results=lambda wildcards: study.results(
            experiment, [experiment.artifacts[wildcards.table]]
        ),
        overlaps=lambda wildcards: study.overlaps(
            experiment, experiment.artifacts[wildcards.table]
        ),
    output:
        csv="<results>/{table}.csv",
        cells="<results>/{table}.cells.csv",
        pairs="<results>/{table}.pairs.csv",
        md="<results>/{table}.md",
        tex="<results>/{table}.tex",
        html=report(
            "<results>/{table}.html",
            caption="../report/table.rst",
            category="Tables",
            labels=artifact_label,
        ),
    log:
        "<results>/logs/report/{table}.log",
    wildcard_constraints:
        table=of_kind("table", "pivot"),
    conda:
        ENVIRONMENT
    threads: resources_of("table").threads
    resources:
        **asks("table"),
    params:
        recipe=recipe(artifacts.artifact_recipe, "table"),
        root=ROOT,
        results=lambda wildcards, input: named(input),
        title=lambda wildcards: experiment.artifacts[wildcards.table].title,
        caption=lambda wildcards: experiment.artifacts[wildcards.table].caption,
        notice=experiment.notice,
    shell:
        "trialign step {params.recipe:q} {params.results:q}"
        " --root {params.root:q} --output {params.root:q} --log {log:q}"


rule facts:
    input:
        lambda wildcards: study.results(
            experiment, [experiment.artifacts[wildcards.facts]]
        ),
    output:
        csv="<results>/{facts}.csv",
        md="<results>/{facts}.md",
        tex="<results>/{facts}.tex",
        html=report(
            "<results>/{facts}.html",
            caption="../report/facts.rst",
            category="Tables",
            labels=artifact_label,
        ),
    log:
        "<results>/logs/report/{facts}.log",
    wildcard_constraints:
        facts=of_kind("facts"),
    conda:
        ENVIRONMENT
    threads: resources_of("facts").threads
    resources:
        **asks("facts"),
    params:
        recipe=recipe(artifacts.artifact_recipe, "facts"),
        root=ROOT,
        results=lambda wildcards, input: [f"results={folder}" for folder in input],
        title=lambda wildcards: experiment.artifacts[wildcards.facts].title,
        caption=lambda wildcards: experiment.artifacts[wildcards.facts].caption,
        notice=experiment.notice,
    shell:
        "trialign step {params.recipe:q} {params.results:q}"
        " --root {params.root:q} --output {params.root:q} --log {log:q}"


rule figure:
    input:
        results=lambda wildcards: study.results(
            experiment, [experiment.artifacts[wildcards.figure]]
        ),
        overlaps=lambda wildcards: study.overlaps(
            experiment, experiment.artifacts[wildcards.figure]
        ),
        runs=lambda wildcards: study.shown_runs(
            experiment, experiment.artifacts[wildcards.figure]
        ),
        prepared=lambda wildcards: study.prepared(
            experiment, experiment.artifacts[wildcards.figure]
        ),
        tokens=lambda wildcards: study.tokens(
            experiment, experiment.artifacts[wildcards.figure]
        ),
    output:
        csv="<results>/{figure}.csv",
        png="<results>/{figure}.png",
        pdf="<results>/{figure}.pdf",
        svg=report(
            "<results>/{figure}.svg",
            caption="../report/figure.rst",
            category="Figures",
            labels=artifact_label,
        ),
    log:
        "<results>/logs/report/{figure}.log",
    wildcard_constraints:
        figure=of_kind(*study.FIGURES),
    conda:
        ENVIRONMENT
    threads: resources_of("figure").threads
    resources:
        **asks("figure"),
    params:
        recipe=recipe(artifacts.artifact_recipe, "figure"),
        root=ROOT,
        results=lambda wildcards, input: named_of_figure(input),
        title=lambda wildcards: experiment.artifacts[wildcards.figure].title,
        caption=lambda wildcards: experiment.artifacts[wildcards.figure].caption,
        notice=experiment.notice,
    shell:
        "trialign step {params.recipe:q} {params.results:q}"
        " --root {params.root:q} --output {params.root:q} --log {log:q}"


rule claims:
    input:
        results=lambda wildcards: study.results(
            experiment, [experiment.artifacts[wildcards.claims]]
        ),
        claims=lambda wildcards: experiment.artifacts[wildcards.claims].file,
        published=experiment.published or [],
    output:
        csv="<results>/{claims}.csv",
        md="<results>/{claims}.md",
        tex="<results>/{claims}.tex",
        html=report(
            "<results>/{claims}.html",
            caption="../report/claims.rst",
            category="Claims",
            labels=artifact_label,
        ),
    log:
        "<results>/logs/report/{claims}.log",
    wildcard_constraints:
        claims=of_kind("claims"),
    conda:
        ENVIRONMENT
    threads: resources_of("claims").threads
    resources:
        **asks("claims"),
    params:
        recipe=recipe(artifacts.artifact_recipe, "claims"),
        root=ROOT,
        results=named_claims,
        title=lambda wildcards: experiment.artifacts[wildcards.claims].title,
        caption=lambda wildcards: experiment.artifacts[wildcards.claims].caption,
        notice=experiment.notice,
    shell:
        "trialign step {params.recipe:q} {params.results:q}"
        " --root {params.root:q} --output {params.root:q} --log {log:q}"


rule results:
    input:
        study.results(experiment, experiment.artifacts.values()),
    output:
        report(
            "<results>/results.csv",
            caption="../report/results.rst",
            category="Results",
            labels={"artifact": "All results"},
        ),
    log:
        "<results>/logs/report/results.log",
    conda:
        ENVIRONMENT
    threads: resources_of("results").threads
    resources:
        **asks("results"),
    params:
        recipe=recipe(artifacts.results_recipe),
        root=ROOT,
        results=lambda wildcards, input: [f"results={folder}" for folder in input],
        notice=experiment.notice,
    shell:
        "trialign step {params.recipe:q} {params.results:q}"
        " --root {params.root:q} --output {params.root:q} --log {log:q}"


# The study as one page, from its artifacts and the records of all that is behind them.
rule index:
    input:
        **study.index_inputs(experiment),
    output:
        "<results>/index.html",
    log:
        "<results>/logs/report/index.log",
    conda:
        ENVIRONMENT
    threads: resources_of("index").threads
    resources:
        **asks("index"),
    params:
        recipe=recipe(artifacts.index_recipe),
        root=ROOT,
        inputs=[
            f"{name}={path}"
            for name, paths in study.index_inputs(experiment).items()
            for path in paths
        ],
    shell:
        "trialign step {params.recipe:q} {params.inputs:q}"
        " --root {params.root:q} --output {params.root:q} --log {log:q}"
