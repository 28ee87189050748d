# Models: tiny bases are pre-trained, published ones imported, everything else is one recursive rule.
PRETRAINED = [name for name, model in experiment.models.items() if model.pretrain]
IMPORTED = study.imported(experiment)
CHOOSING = any_of(study.choosing_stages(experiment))


rule pretrain:
    input:
        corpus=lambda wildcards: study.source_input(
            experiment, experiment.models[wildcards.lineage].corpus
        ),
        tokenizer=path(paths.TOKENIZER, model=base_of),
    output:
        model=directory(paths.MODEL),
        record=run_report(paths.RUN_JSON),
    log:
        "<results>/logs/train/{lineage}/seed{seed}.log",
    benchmark:
        "<results>/logs/train/{lineage}/seed{seed}.tsv"
    wildcard_constraints:
        lineage=any_of(PRETRAINED),
    conda:
        ENVIRONMENT
    threads: resources_of("pretrain").threads
    resources:
        **asks("pretrain"),
    params:
        recipe=recipe(study.pretrain_recipe, "lineage", "seed"),
        root=ROOT,
        corpus=lambda wildcards: study.source_path(
            experiment, experiment.models[wildcards.lineage].corpus
        ),
        output=folder_of_record,
    shell:
        "trialign step {params.recipe:q} corpus={params.corpus:q} tokenizer={input.tokenizer:q}"
        " --root {params.root:q} --output {params.output:q} --log {log:q}"


rule import_model:
    input:
        model=lambda wildcards: study.source_input(
            experiment, IMPORTED[wildcards.lineage]
        ),
        tokenizer=path(paths.TOKENIZER, model=base_of),
    output:
        model=directory(paths.MODEL),
        record=run_report(paths.RUN_JSON),
    log:
        "<results>/logs/train/{lineage}/seed{seed}.log",
    wildcard_constraints:
        lineage=any_of(IMPORTED),
    conda:
        ENVIRONMENT
    threads: resources_of("import_model").threads
    resources:
        **asks("import_model"),
    params:
        recipe=recipe(study.import_recipe),
        root=ROOT,
        source=lambda wildcards: study.source_path(
            experiment, IMPORTED[wildcards.lineage]
        ),
        output=folder_of_record,
    shell:
        "trialign step {params.recipe:q} model={params.source:q} tokenizer={input.tokenizer:q}"
        " --root {params.root:q} --output {params.output:q} --log {log:q}"


# The parent's log-probabilities of a data set's responses, for all methods and parameters that compare with it.
rule reference:
    input:
        model=paths.MODEL,
        tokens=path(paths.TOKENS, model=base_of),
    output:
        directory(paths.REFERENCE),
    log:
        "<results>/logs/reference/{lineage}/seed{seed}/{data}.{reading}.log",
    benchmark:
        "<results>/logs/reference/{lineage}/seed{seed}/{data}.{reading}.tsv"
    wildcard_constraints:
        reading=any_of(study.readings()),
    conda:
        ENVIRONMENT
    threads: resources_of("reference").threads
    resources:
        **asks("reference"),
    params:
        recipe=recipe(study.reference_recipe, "reading"),
        root=ROOT,
    shell:
        "trialign step {params.recipe:q} model={input.model:q} tokens={input.tokens:q}"
        " --root {params.root:q} --output {output:q} --log {log:q}"


# Several runs of a method with other settings: one is taken, by the evaluation rows.
rule choose:
    input:
        models=candidates(paths.MODEL),
        records=candidates(paths.RUN_JSON),
    output:
        model=directory(paths.MODEL),
        record=run_report(paths.RUN_JSON),
    log:
        "<results>/logs/train/{lineage}/seed{seed}.log",
    wildcard_constraints:
        lineage=rf"[^/]+\+(?:{CHOOSING})",
    conda:
        ENVIRONMENT
    threads: resources_of("choose").threads
    resources:
        **asks("choose"),
    params:
        recipe=recipe(study.choose_recipe, "lineage"),
        root=ROOT,
        candidates=lambda wildcards, input: [
            f"candidate={Path(record).parent}" for record in input.records
        ],
        output=folder_of_record,
    shell:
        "trialign step {params.recipe:q} {params.candidates:q}"
        " --root {params.root:q} --output {params.output:q} --log {log:q}"


rule train:
    input:
        parent=parent_model,
        reference=parent_reference,
        tokens=path(paths.TOKENS, model=base_of, data=stage_data),
    output:
        model=directory(paths.MODEL),
        record=run_report(paths.RUN_JSON),
    log:
        "<results>/logs/train/{lineage}/seed{seed}.log",
    benchmark:
        "<results>/logs/train/{lineage}/seed{seed}.tsv"
    wildcard_constraints:
        lineage=rf"(?!(?:{any_of(IMPORTED)})/)(?![^/]+\+(?:{CHOOSING})/)[^/+]+\+[^/]+",
    conda:
        ENVIRONMENT
    threads: resources_of("train").threads
    resources:
        **(asks("train") | {"gpu": train_gpus, "nodes": train_nodes}),
    params:
        recipe=recipe(study.train_recipe, "lineage", "seed"),
        root=ROOT,
        output=folder_of_record,
        reference=named_reference,
        nodes=train_nodes,
        processes=train_processes,
    shell:
        "trialign step {params.recipe:q} parent={input.parent:q} tokens={input.tokens:q}"
        " {params.reference:q} --root {params.root:q} --output {params.output:q} --log {log:q}"
        " --nodes {params.nodes} --processes {params.processes}"
