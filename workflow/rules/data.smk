# From sources to tokens: the world or downloads, prepared data sets, tokenizers, tokens.
rule world:
    output:
        directory(paths.WORLD),
    log:
        "<results>/logs/world.log",
    conda:
        ENVIRONMENT
    threads: resources_of("world").threads
    resources:
        **asks("world"),
    params:
        recipe=recipe(study.world_recipe),
        root=ROOT,
    shell:
        "trialign step {params.recipe:q} --root {params.root:q} --output {output:q} --log {log:q}"


rule fetch:
    output:
        directory(paths.SOURCE),
    log:
        "<results>/logs/fetch/{source}.log",
    conda:
        ENVIRONMENT
    threads: resources_of("fetch").threads
    resources:
        **asks("fetch"),
    params:
        recipe=recipe(study.fetch_recipe, "source"),
        root=ROOT,
    shell:
        "trialign step {params.recipe:q} --root {params.root:q} --output {output:q} --log {log:q}"


rule tokenizer:
    input:
        lambda wildcards: study.source_input(
            experiment, study.tokenizer_source(experiment, wildcards.model)[1]
        ),
    output:
        directory(paths.TOKENIZER),
    log:
        "<results>/logs/tokenizer/{model}.log",
    conda:
        ENVIRONMENT
    threads: resources_of("tokenizer").threads
    resources:
        **asks("tokenizer"),
    params:
        recipe=recipe(study.tokenizer_recipe, "model"),
        root=ROOT,
        source=lambda wildcards: tokenizer_source(wildcards.model),
    shell:
        "trialign step {params.recipe:q} {params.source:q} --root {params.root:q} --output {output:q} --log {log:q}"


rule prepare:
    input:
        lambda wildcards: study.source_input(
            experiment, experiment.data[wildcards.data].source
        ),
    output:
        card_report(paths.PREPARED, "{data}"),
    log:
        "<results>/logs/prepare/{data}.log",
    conda:
        ENVIRONMENT
    threads: resources_of("prepare").threads
    resources:
        **asks("prepare"),
    params:
        recipe=recipe(study.data_recipe, "data"),
        root=ROOT,
        source=lambda wildcards: study.source_path(
            experiment, experiment.data[wildcards.data].source
        ),
    shell:
        "trialign step {params.recipe:q} source={params.source:q} --root {params.root:q} --output {output:q} --log {log:q}"


# Which benchmark questions a data set holds: only for artifacts that tell seen items from unseen ones.
rule overlap:
    input:
        data=paths.PREPARED,
        benchmarks=study.benchmark_sources(experiment),
    output:
        card_report(paths.OVERLAP, "{data} and benchmarks"),
    log:
        "<results>/logs/overlap/{data}.log",
    conda:
        ENVIRONMENT
    threads: resources_of("overlap").threads
    resources:
        **asks("overlap"),
    params:
        recipe=recipe(study.overlap_recipe, "data"),
        root=ROOT,
        benchmarks=benchmark_data(experiment.benchmarks),
    shell:
        "trialign step {params.recipe:q} data={input.data:q} {params.benchmarks:q}"
        " --root {params.root:q} --output {output:q} --log {log:q}"


rule tokens:
    input:
        data=paths.PREPARED,
        tokenizer=paths.TOKENIZER,
    output:
        card_report(paths.TOKENS, "{data} as tokens of {model}"),
    log:
        "<results>/logs/tokens/{model}/{data}.log",
    conda:
        ENVIRONMENT
    threads: resources_of("tokens").threads
    resources:
        **asks("tokens"),
    params:
        recipe=recipe(study.tokens_recipe, "model", "data"),
        root=ROOT,
    shell:
        "trialign step {params.recipe:q} data={input.data:q} tokenizer={input.tokenizer:q}"
        " --root {params.root:q} --output {output:q} --log {log:q}"
