"""What judging takes before it is spent: the requests that are not stored yet, their tokens and their price.

Requests to answers that are there are built and counted; for answers to come the config's `expect.judge` stands. Tokens
of a byte, and those of a response, are as the judge's stored responses say, else a token for four bytes and `expect`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trialign import diverged, paths, study
from trialign.config import Experiment
from trialign.evaluation import requests
from trialign.evaluation.judge import requests_of
from trialign.evaluation.questions import TURNS, read_questions
from trialign.evaluation.requests import Prompt
from trialign.evaluation.responses import BYTES_OF_A_TOKEN, FILE, Limits, Responses, Tokens
from trialign.plan import Dag


def forecast(dag: Dag) -> dict[str, Any]:
    """Return what the judging of a dry run's targets takes, by judge and run. UserError: questions not fetched yet.

    A response without a usable rating is asked for again, up to `reasks` times: such requests are not foreseen.
    """
    experiment = dag.experiment
    file = Path(experiment.results_dir) / paths.SHARED / FILE
    stored = Responses(file) if file.is_file() else None
    judges = []
    for name in study.judges(experiment):
        if experiment.judges[name].kind == "openai":
            runs = [job.wildcards for job in dag.jobs if job.rule == "judge" and job.wildcards["judge"] == name]
            judges.append(_of_judge(experiment, name, runs, stored))
    return {"experiment": experiment.name, "judges": judges}


def _of_judge(
    experiment: Experiment, name: str, runs: list[Mapping[str, str]], stored: Responses | None
) -> dict[str, Any]:
    judge, endpoint = experiment.judges[name], experiment.judges[name].endpoint
    per_byte, response = stored.rates(name) if stored else (None, None)
    response = experiment.expect.judge.tokens_out if response is None else response
    rows = [_of_run(experiment, name, run, stored, per_byte or 1 / BYTES_OF_A_TOKEN, response) for run in runs]
    total = Tokens(sum(row["tokens_in"] for row in rows), sum(row["tokens_out"] for row in rows))
    spent = stored.spent(name).most if stored else Tokens()
    return {
        "judge": name,
        "model": judge.model,
        "runs": rows,
        "requests": sum(row["requests"] for row in rows),
        "stored": sum(row["stored"] for row in rows),
        "tokens_in": total.into,
        "tokens_out": total.out,
        "usd": round(total.cost(endpoint.price_in, endpoint.price_out), 2),
        "spent_tokens": sum(spent),
        "spent_usd": round(spent.cost(endpoint.price_in, endpoint.price_out), 2),
        "max_cost": endpoint.max_cost,
        "max_tokens": endpoint.max_tokens,
        "within_budget": Limits.of(endpoint).hold(spent.plus(total)),
        "tokens_measured": per_byte is not None,
    }


def _of_run(
    experiment: Experiment,
    name: str,
    run: Mapping[str, str],
    stored: Responses | None,
    per_byte: float,
    response: float,
) -> dict[str, Any]:
    answers = Path(study.fill(experiment, paths.ANSWERS, **run))
    judge, expect = experiment.judges[name], experiment.expect
    found = {"lineage": run["lineage"], "seed": int(run["seed"]), "answered": answers.is_dir()}
    if not answers.is_dir():
        number = len(TURNS) * expect.answers.questions * experiment.answers.choices * judge.repeats
        return found | {"requests": number, "stored": 0, "tokens_in": round(number * expect.judge.tokens_in),
                        "tokens_out": round(number * response)}  # fmt: skip
    bodies = [] if diverged.read(answers) else list(_bodies(experiment, name, answers))
    left = [body for body, number in bodies if not (stored and stored.get(requests.key(name, body, number)))]
    size = sum(map(requests.size, left))
    return found | {"requests": len(bodies), "stored": len(bodies) - len(left), "tokens_in": round(size * per_byte),
                    "tokens_out": round(len(left) * response)}  # fmt: skip


def _bodies(experiment: Experiment, name: str, answers: Path) -> Iterator[tuple[dict[str, Any], tuple[int, ...]]]:
    """Yield the body and the number of the first request for each answer."""
    folder, judge = Path(study.source_path(experiment, study.question_sources(experiment)[0])), experiment.judges[name]
    prompt = Prompt(folder)
    for request in requests_of(read_questions(folder), answers, judge.repeats):
        yield requests.body(judge, prompt.messages(request)), requests.number(request, 0)
