"""Controls: TPO is the sum of what its terms do alone, and pairwise methods read as many tokens as TPO."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
import torch
from trl_room import recipe

from trialign.training import packed, train
from trialign.training.examples import Examples


def gradient(recipe_of_one, models, folder, scratch) -> dict[str, torch.Tensor]:
    data = {split: Examples(folder / "train.parquet", recipe_of_one.view) for split in ("train", "eval")}
    trainer = packed.build_trainer(recipe_of_one, models["mistral"], data, {"train": {}, "eval": {}}, scratch, 200)
    trainer.training_step(trainer.model, [data["train"][index] for index in range(len(data["train"]))])
    return {name: weight.grad for name, weight in trainer.model.named_parameters()}


@pytest.mark.parametrize("alpha", [1, 0.3])
def test_tpo_is_its_preference_term_and_sft_on_the_references(alpha, models, tokens, tmp_path):
    """By the gradient of one batch: the controls train on exactly what TPO's two terms are."""
    folder = tokens(6)

    def of(name: str, method: str, params: dict, view: str) -> dict[str, torch.Tensor]:
        return gradient(recipe(method, params, view, batch=6), models, folder, tmp_path / name)

    whole = of("whole", "tpo", {"alpha": alpha, "beta": 0.2}, "triple")
    preference = of("preference", "tpo", {"alpha": 0, "beta": 0.2}, "triple")
    reference = of("reference", "sft", {}, "reference")
    scale = max(value.abs().max() for value in whole.values())
    for name, value in whole.items():
        assert (value - preference[name] - alpha * reference[name]).abs().max() < 1e-5 * scale


@pytest.mark.parametrize(
    ("method", "params", "view", "engine"),
    [
        ("cpo", {"beta": 0.1}, "chosen-rejected", "packed"),
        ("orpo", {"beta": 0.1}, "reference-rejected", "packed"),
        ("sft", {}, "reference", "packed"),
        ("cpo", {"beta": 0.1}, "chosen-rejected", "trl"),
    ],
)
def test_tokens_of_triples_are_matched_in_steps(method, params, view, engine, models, tokens, step):
    """As many steps as it takes to read the tokens of an epoch of triples, counted here from the file."""
    folder = tokens(18)
    rows = pq.read_table(folder / "train.parquet").to_pylist()
    sides = {
        "chosen-rejected": ("chosen", "rejected"),
        "reference-rejected": ("reference", "rejected"),
        "reference": ("reference",),
    }
    prompts = sum(len(row["prompt"]) for row in rows)
    own = prompts + sum(len(row[side]) for row in rows for side in sides[view])
    triples = prompts + sum(len(row[side]) for row in rows for side in ("reference", "chosen", "rejected"))
    batch, epochs = 4, 2
    matched = recipe(method, params, view, batch=batch, epochs=epochs, tokens_of="triple", engine=engine)
    made = step(matched, models["mistral"], folder)
    facts = train.train(made)
    assert facts["steps"] == round(5 * epochs * triples / own) > 5 * epochs  # 18 prompts are 5 batches of 4
    logged = [json.loads(line) for line in (made.out / "log.jsonl").read_text().splitlines()]
    assert sum("loss" in entry for entry in logged) == facts["steps"]
    if engine == "packed":  # TRL's trainers read a prompt once for each response
        assert facts["tokens"] == pytest.approx(epochs * triples, rel=0.12)  # to a step, the smallest being 2 prompts


def test_max_steps_ends_a_matched_run_too(models, tokens, step):
    matched = recipe("cpo", {"beta": 0.1}, "chosen-rejected", batch=4, tokens_of="triple", max_steps=3)
    assert train.train(step(matched, models["mistral"], tokens(18)))["steps"] == 3
