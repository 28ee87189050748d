"""What both engines log, as `reporting.curves` reads it: one quantity, one value, whoever trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trl_room import PARAMS, run_of

from trialign.reporting.curves import read
from trialign.training import train

LENGTH_NORMALISED = {"alpha": 0.9, "beta": 0.2, "length_normalised": True, "margin": 0.5}
# what TRL does not log, or logs another quantity under this name
LACKING = {
    "sft": {"reference log-prob"},
    "ipo": {"margin", "accuracy"},
    "orpo": {"chosen log-prob", "rejected log-prob"},
    "simpo": {"chosen log-prob", "rejected log-prob"},
    "tpo": {"reference log-prob"},
    "kto": {"accuracy"},
}


def curves_of(run: object) -> dict[tuple[str, int, str], float]:
    facts = train.train(run)
    record = {"recipe": json.loads(run.recipe.canonical()), "facts": facts}
    path: Path = run.out / "run.json"
    path.write_text(json.dumps(record))
    points = list(read(path))
    values = {point[:3]: point[3] for point in points}
    assert len(values) == len(points)
    return values


@pytest.mark.parametrize(
    ("method", "params", "lacking"),
    [
        *((method, params, LACKING.get(method, set())) for method, params in PARAMS.items()),
        ("tpo", LENGTH_NORMALISED, {f"{name} log-prob" for name in ("reference", "chosen", "rejected")}),
    ],
)
def test_both_engines_give_the_same_curves(method, params, lacking, models, tokens, step, tmp_path) -> None:
    folder = tokens(8, 4)
    settings = {"params": params, "warmup": 0.0}
    ours, theirs = (
        curves_of(run_of(step, tmp_path, method, models["mistral"], folder, engine, engine=engine, **settings))
        for engine in ("packed", "trl")
    )
    tied = {("train", 1, "accuracy")}  # nobody leads yet where the parent is subtracted from itself
    common = theirs.keys() - tied
    assert {key: theirs[key] for key in common} == pytest.approx({key: ours[key] for key in common}, rel=5e-3, abs=1e-5)
    assert {quantity for _, _, quantity in ours.keys() - theirs.keys()} == lacking
    assert {(split, number) for split, number, _ in ours} == {("train", 1), ("train", 2), ("eval", 2)}
    assert {"loss", "gradient norm", "learning rate"} <= {quantity for _, _, quantity in theirs}


def test_in_the_view_of_reference_and_rejected_the_chosen_response_is_the_reference(
    models, tokens, step, tmp_path
) -> None:
    made = run_of(step, tmp_path, "orpo", models["mistral"], tokens(8, 4), "view", engine="packed")
    of_triples = run_of(step, tmp_path, "tpo", models["mistral"], made.input("tokens"), "triple", engine="packed")
    recipe = made.recipe.model_copy(update={"view": "reference-rejected"})
    orpo, tpo = curves_of(made.__class__(recipe, made.inputs, made.out, made.scratch)), curves_of(of_triples)
    first = ("train", 1, "reference log-prob")
    assert orpo[first] == pytest.approx(tpo[first], rel=1e-5)
    assert ("train", 1, "chosen log-prob") not in orpo and ("train", 1, "chosen log-prob") in tpo
