# Evaluation: harness suites, and answers to two-turn questions that a judge rates.
rule evaluate:
    input:
        model=paths.MODEL,
        data=suite_inputs,
    output:
        directory(paths.SUITE),
    log:
        "<results>/logs/evaluate/{lineage}/seed{seed}/{suite}.log",
    benchmark:
        "<results>/logs/evaluate/{lineage}/seed{seed}/{suite}.tsv"
    wildcard_constraints:
        suite=any_of(study.harness_suites(experiment)),
    conda:
        ENVIRONMENT
    threads: resources_of("evaluate").threads
    resources:
        **asks("evaluate"),
    params:
        recipe=recipe(study.evaluate_recipe, "lineage", "suite"),
        root=ROOT,
        data=suite_data,
    shell:
        "trialign step {params.recipe:q} model={input.model:q} {params.data:q}"
        " --root {params.root:q} --output {output:q} --log {log:q}"


# The answers themselves are published beside their record and are not declared: Snakemake deletes the declared
# outputs of jobs that fail or are interrupted.
rule answer:
    input:
        model=paths.MODEL,
        questions=QUESTIONS_INPUT,
    output:
        f"{paths.ANSWERS}/run.json",
    log:
        "<results>/logs/answer/{lineage}/seed{seed}.log",
    benchmark:
        "<results>/logs/answer/{lineage}/seed{seed}.tsv"
    conda:
        ENVIRONMENT
    threads: resources_of("answer").threads
    resources:
        **asks("answer"),
    params:
        recipe=recipe(study.answer_recipe, "lineage", "seed"),
        root=ROOT,
        questions=QUESTIONS,
        output=path(paths.ANSWERS),
    shell:
        "trialign step {params.recipe:q} model={input.model:q} questions={params.questions:q}"
        " --root {params.root:q} --output {params.output:q} --log {log:q}"


rule judge:
    input:
        answers=f"{paths.ANSWERS}/run.json",
        questions=QUESTIONS_INPUT,
    output:
        directory(paths.JUDGED),
    log:
        "<results>/logs/judge/{lineage}/seed{seed}/{judge}.log",
    wildcard_constraints:
        judge=any_of(study.judges(experiment)),
    conda:
        ENVIRONMENT
    threads: resources_of("judge").threads
    resources:
        **asks("judge"),
    params:
        recipe=recipe(study.judge_recipe, "judge"),
        root=ROOT,
        answers=path(paths.ANSWERS),
        questions=QUESTIONS,
    shell:
        "trialign step {params.recipe:q} answers={params.answers:q} questions={params.questions:q}"
        " --root {params.root:q} --output {output:q} --log {log:q}"
