"""Training with the stock trainers: what their models see, what a run leaves behind, and what a kill cannot change."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from trl_room import BOS, EOS, PAD, PARAMS, assert_same_run, recipe, training_process

from trialign import methods
from trialign.errors import Again, UserError
from trialign.training import train, trl
from trialign.training.callbacks import newest_checkpoint
from trialign.training.common import fields_of

BRANCHES = {
    "reference": ["reference"],
    "chosen-rejected": ["chosen", "rejected"],
    "reference-rejected": ["reference", "rejected"],
    "triple": ["chosen", "rejected", "reference"],
}


def seen_ids(model: torch.nn.Module) -> list[tuple[int, ...]]:
    """A list that fills with every sequence that the model embeds, its padding cut off."""
    seen: list[tuple[int, ...]] = []

    def record(module, arguments):
        for row in arguments[0].tolist():
            while row[-1] == PAD:
                row.pop()
            seen.append(tuple(row))

    model.get_input_embeddings().register_forward_pre_hook(record)
    return seen


@pytest.fixture
def trainer(models, tokens, tmp_path):
    """Make a trainer on `train` triples; returns it and the triples."""

    def make(method: str, view: str = "", train: int = 18, **training):
        folder = tokens(train)
        of_method = recipe(method, view=view, **training)
        rows = {split: trl.read_rows(folder / f"{split}.parquet", of_method) for split in ("train", "eval")}
        made = trl.build_trainer(
            of_method, models["mistral"], rows, tmp_path / method, trl.Split(1, of_method.training.batch, 1)
        )
        return made, pq.read_table(folder / "train.parquet").to_pylist()

    return make


USUAL = {"sft": "reference", "tpo": "triple"}
READINGS = [(method, view) for method in PARAMS for view in methods.get(method).views if view != "conversation"]


@pytest.mark.parametrize(("method", "view"), READINGS)
def test_every_model_sees_the_ids_of_the_tokens_file(method, view, trainer):
    """In an epoch each branch of the view once, as prompt + response, BOS and EOS included; for KTO also each response
    after another prompt; and the reference model sees what the policy sees."""
    made, triples = trainer(method, view)
    policy = seen_ids(made.model)
    reference = seen_ids(made.ref_model) if hasattr(made, "ref_model") else None
    made.train()

    expected = Counter(tuple(row["prompt"] + row[branch]) for row in triples for branch in BRANCHES[view])
    assert all(ids[0] == BOS and ids[-1] == EOS for ids in policy)
    if method == "kto":
        mismatched = Counter(policy) - expected
        own = {(tuple(row["prompt"]), tuple(row[branch])) for row in triples for branch in BRANCHES[view]}
        other = {(p, r): p + r for p, _ in own for _, r in own if (p, r) not in own}
        assert mismatched.total() == expected.total()
        assert set(mismatched) <= set(other.values())
        expected += mismatched
    assert Counter(policy) == expected
    if method in ("dpo", "ipo", "kto"):
        assert Counter(reference) == expected
    else:
        assert reference is None


def test_every_method_sees_the_prompts_in_the_same_order(trainer):
    orders = {}
    for method in PARAMS:
        made, triples = trainer(method, epochs=2)
        chosen = BRANCHES[USUAL.get(method, "chosen-rejected")][0]
        index = {tuple(row["prompt"] + row[chosen]): i for i, row in enumerate(triples)}
        seen = seen_ids(made.model)
        made.train()
        orders[method] = [index[ids] for ids in seen if ids in index]
    first = orders["dpo"]
    assert all(order == first for order in orders.values())
    assert sorted(first[:18]) == sorted(first[18:]) == list(range(18))
    assert first[:18] != first[18:]


def test_kto_finds_another_prompt_for_a_last_batch_of_one(trainer):
    made, triples = trainer("kto", train=9)  # batches of 4, 4 and 1
    seen = seen_ids(made.model)
    made.train()
    own = {tuple(row["prompt"] + row[side]) for row in triples for side in ("chosen", "rejected")}
    assert len(seen) == 36
    assert sum(ids in own for ids in seen) == 18


@pytest.mark.parametrize("method", ["sft", "kto", "tpo"])
def test_the_first_step_is_a_clipped_adamw_step(method, trainer):
    """The loop adds no scale of its own: after one step without warm-up every weight has moved by the learning rate
    against its gradient's sign (AdamW's first step), and the logged loss and norm are the batch's."""
    made, _ = trainer(method, train=4, warmup=0.0, schedule="constant", adam_epsilon=1e-12, learning_rate=1e-3)
    before = {name: weight.detach().clone() for name, weight in made.model.named_parameters()}
    loss = made.compute_loss(made.model.train(), made.data_collator([made.train_dataset[i] for i in range(4)]))
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in made.model.named_parameters()}
    made.model.zero_grad()
    made.train()
    logged = made.state.log_history[0]
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert logged["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    for name, weight in made.model.named_parameters():
        clear = gradients[name].abs() > 1e-6
        moved = (weight - before[name])[clear]
        torch.testing.assert_close(moved, -1e-3 * gradients[name][clear].sign(), rtol=2e-2, atol=0)


def test_a_run_leaves_a_model_a_log_and_its_facts(models, tokens, step, capfd):
    folder = tokens(18)
    settings = {"learning_rate": 3e-3, "weight_decay": 0.1, "adam_beta2": 0.95, "adam_epsilon": 1e-7, "seed": 7}
    one = step(recipe("tpo", **settings, max_grad_norm=0.5, epochs=2), models["mistral"], folder)
    facts = train.train(one)

    assert sys.float_info.min / 2 > 0  # the caller's own arithmetic has its denormals still
    json.dumps(facts)
    assert facts["rows"] == {"train": 18, "eval": 5}
    assert (facts["steps"], facts["last_batch"]) == (10, 2)  # 4 + 4 + 4 + 4 + 2 prompts, twice
    triples = pq.read_table(folder / "train.parquet").to_pylist()
    per_epoch = sum(len(row["prompt"] + row[branch]) for row in triples for branch in BRANCHES["triple"])
    assert facts["tokens"] == 2 * per_epoch
    assert {"train_loss", "loss", "rewards/margins", "rewards/accuracies"} <= set(facts["final"])
    trainer = facts["trainer"]
    expected = {
        "learning_rate": 3e-3,
        "weight_decay": 0.1,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-7,
        "max_grad_norm": 0.5,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.1,
        "seed": 7,
        "data_seed": 7,
        "bf16": False,
        "disable_dropout": True,
        "report_to": [],
        "tpo_alpha": 0.9,
        "beta": 0.2,
        "loss_type": "sigmoid",
    }
    assert {key: trainer[key] for key in expected} == expected
    assert not [value for value in trainer.values() if isinstance(value, str) and "/" in value]

    # warmup 0.1 of 10 steps is 1 step; then linearly to 0 (the rate that each step used)
    log = [json.loads(line) for line in (one.out / "log.jsonl").read_text().splitlines()]
    rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    assert rates == pytest.approx([0.0] + [3e-3 * (10 - k) / 9 for k in range(1, 10)])

    weights = load_file(one.out / "model" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    configs = [json.loads((path / "config.json").read_text()) for path in (models["mistral"], one.out / "model")]
    assert configs[1] == {**configs[0], "pad_token_id": PAD}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (one.out / "model" / name).read_bytes() == (models["mistral"] / name).read_bytes()
    assert sorted(path.name for path in one.out.iterdir()) == ["log.jsonl", "model"]
    assert not [path for path in (one.out / "model").iterdir() if path.suffix in (".bin", ".md", ".pt")]

    printed = capfd.readouterr()
    assert printed.out == ""
    assert "step 10/10  loss" in printed.err
    assert "\r" not in printed.err


def test_nothing_of_a_trainer_is_left_to_its_defaults():
    """Every field that TRL adds to transformers' arguments is set from the recipe or the method, or cannot matter."""
    from transformers import TrainingArguments

    cannot_matter = {
        "max_completion_length": "encoder-decoders",
        "generate_during_eval": "samples for W&B, needs it installed",
        "truncation_mode": "max_length is the longest row",
        "precompute_ref_batch_size": "nothing is precomputed",
        "ref_model_mixup_alpha": "sync_ref_model is off",
        "ref_model_sync_steps": "sync_ref_model is off",
        "f_alpha_divergence_coef": "f_divergence_type is reverse_kl",
        "discopop_tau": "loss_type is not discopop",
        "simpo_gamma": "read with loss_type simpo only, where it is set",
        "pad_token": "the tokenizer's",
        "eos_token": "the rows are token ids",
        "chat_template_path": "the rows are token ids",
        "dataset_text_field": "the rows are token ids",
        "dataset_kwargs": "the rows are token ids",
        "completion_only_loss": "the rows have labels",
        "assistant_only_loss": "the rows have labels",
        "packing_strategy": "packing is off",
        "eval_packing": "packing is off",
    }
    for name, params in PARAMS.items():
        of_method = recipe(name, params)
        spec = methods.get(name).trl(methods.get(name).parse(params))
        config = trl._import(spec.config)
        own = {field.name for field in dataclasses.fields(config)}
        own -= {field.name for field in dataclasses.fields(TrainingArguments)}
        given = set(fields_of(of_method, config, micro_batch=4, accumulation=1, processes=1)) | {"max_length"}
        assert own - set(spec.fields) - given <= set(cannot_matter), name


@pytest.fixture
def found_anew():
    """The package looks for methods once: before and after a test that adds one, it forgets what it found."""
    methods.names.cache_clear()
    yield
    methods.names.cache_clear()


def test_a_method_of_ones_own_is_one_file(models, tokens, step, tmp_path, monkeypatch, found_anew):
    """A file beside the package's own, named in a recipe, trains."""
    (tmp_path / "slic.py").write_text(
        "from trialign.methods import cpo\n"
        "from trialign.methods._base import PAIRS, Method, TrlSpec\n"
        "def _trl(params):\n"
        "    fields = {**cpo.PLAIN, 'loss_type': 'hinge', 'beta': params.beta, 'cpo_alpha': 0.0}\n"
        "    return TrlSpec('trl.experimental.cpo.CPOTrainer', 'trl.experimental.cpo.CPOConfig', fields)\n"
        "METHOD = Method('slic', 'SLiC', cpo.CpoParams, ('beta',), PAIRS, False, False, _trl)\n"
    )
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    facts = train.train(step(recipe("slic", {"beta": 0.5}), models["mistral"], tokens()))
    assert facts["trainer"]["loss_type"] == "hinge"
    assert facts["final"]["train_loss"] > 0


def test_a_child_trains_on_and_a_generation_loads(models, tokens, step):
    """The output of one stage is the parent of the next, on both architectures and in the config's dropout."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    first = step(recipe("sft"), models["phi"], tokens(), "first")
    train.train(first)
    second = step(recipe("dpo"), first.out / "model", tokens(), "second")
    facts = train.train(second)
    assert facts["reference"]
    model = AutoModelForCausalLM.from_pretrained(second.out / "model")
    assert model.generate(torch.tensor([[BOS, 5, 6]]), max_new_tokens=2, do_sample=False).shape[1] <= 5
    assert AutoTokenizer.from_pretrained(second.out / "model").eos_token_id == EOS


def test_small_steps_survive_bf16(models, tokens, step):
    """Master weights are fp32: a learning rate that bf16 weights would round away moves the saved weights."""
    one = step(recipe("dpo", learning_rate=5e-7, warmup=0.0, precision="bf16"), models["mistral"], tokens(8))
    facts = train.train(one)
    assert facts["trainer"]["bf16"]
    before = load_file(models["mistral"] / "model.safetensors")
    after = load_file(one.out / "model" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    moved = (after[name] - before[name]).abs()
    assert after[name].dtype == torch.float32
    assert 1e-8 < moved.max() <= 1.1e-6
    assert (moved > 0).float().mean() > 0.9


@pytest.mark.parametrize("method", ["sft", "kto"])
def test_the_same_seed_gives_bitwise_the_same_weights_and_another_others(method, models, tokens, step):
    folder = tokens()
    runs = {
        name: step(recipe(method, seed=seed), models["phi"], folder, name)
        for name, seed in zip("abc", (3, 3, 4), strict=True)
    }
    for run in runs.values():
        train.train(run)
    weights = {name: (run.out / "model" / "model.safetensors").read_bytes() for name, run in runs.items()}
    assert weights["a"] == weights["b"]
    assert weights["a"] != weights["c"]


@pytest.mark.parametrize("method", sorted(PARAMS))
def test_a_run_killed_twice_resumes_to_bitwise_the_same_weights(method, models, tokens, step, monkeypatch):
    """SIGKILL in the middle of an epoch, half a checkpoint left lying about, SIGKILL again, and a third start."""
    folder, long = tokens(18), {"epochs": 8, "learning_rate": 1e-3}
    whole = step(recipe(method, **long), models["phi"], folder, "whole")
    assert train.train(whole)["resumed_at"] is None

    killed = step(recipe(method, **long), models["phi"], folder, "killed")
    monkeypatch.setenv("TRIALIGN_CHECKPOINT_SECONDS", "0")
    for at_least in (7, 23):
        process = training_process(killed)
        while _step(killed.scratch) < at_least:
            assert process.is_alive()
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert len(list(killed.scratch.glob("checkpoint-*"))) <= 2
        assert not (killed.out / "model").exists()
        torn = killed.scratch / "writing" / "checkpoint-39"
        torn.mkdir(parents=True, exist_ok=True)
        (torn / "trainer_state.json").write_text("{")
    monkeypatch.delenv("TRIALIGN_CHECKPOINT_SECONDS")

    facts = train.train(killed)
    assert 23 <= facts["resumed_at"] < facts["steps"] == 40
    assert_same_run(whole, killed)


def squeue_says(folder: Path, left: str, monkeypatch) -> None:
    """Stand in for SLURM's own word on the time that this process's job has left."""
    folder.mkdir()
    (folder / "squeue").write_text(f"#!/bin/sh\necho '1|{left}'\n")
    (folder / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "1")


def test_a_run_that_would_not_end_in_its_jobs_time_asks_for_another_with_a_checkpoint(
    models, tokens, step, tmp_path, monkeypatch
):
    folder, long = tokens(18), {"epochs": 60, "learning_rate": 1e-3}
    whole = step(recipe("dpo", **long), models["phi"], folder, "whole")
    assert train.train(whole)["steps"] == 300
    short = step(recipe("dpo", **long), models["phi"], folder, "short")
    squeue_says(tmp_path / "bin", "0:02", monkeypatch)
    started = time.monotonic()
    with pytest.raises(Again, match="out of time at step") as again:
        train.train(short)
    assert time.monotonic() - started < 10 and again.value.after is None
    reached = _step(short.scratch)
    assert 0 < reached < 300 and not (short.out / "model").exists()
    squeue_says(tmp_path / "more", "UNLIMITED", monkeypatch)
    assert train.train(short)["resumed_at"] == reached
    assert_same_run(whole, short)


def test_a_cancelled_job_leaves_a_checkpoint(models, tokens, step, tmp_path, monkeypatch):
    """SLURM sends SIGTERM to what it cancels, preempts, or ends for its time, and SIGKILL a while later."""
    run = step(recipe("dpo", epochs=400), models["phi"], tokens(18), "cancelled")
    squeue_says(tmp_path / "bin", "1:00:00", monkeypatch)
    monkeypatch.setenv("TRIALIGN_CHECKPOINT_SECONDS", "1")
    process = training_process(run)
    while not (before := _step(run.scratch)):
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == 128 + signal.SIGTERM
    assert _step(run.scratch) > before


def test_out_of_gpu_memory_means_half_the_micro_batch_of_the_same_global_batch(models, tokens, step, monkeypatch):
    def too_large(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    made, folder = recipe("dpo", epochs=2), tokens(16)
    whole = step(made, models["mistral"], folder, "whole")
    assert train.train(whole)["split"] == {"processes": 1, "micro_batch": 4, "accumulation": 1}
    small = step(made, models["mistral"], folder, "small")
    with monkeypatch.context() as patch:
        patch.setattr(train, "_run", too_large)
        with pytest.raises(Again, match=r"out of GPU memory with 4 prompts at a time on 1 device.*goes on with 2"):
            train.train(small)
    facts = train.train(small)
    assert facts["split"] == {"processes": 1, "micro_batch": 2, "accumulation": 2}
    weights = [load_file(run.out / "model/model.safetensors") for run in (whole, small)]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-5) for name in weights[0])

    kto = step(recipe("kto"), models["mistral"], folder, "kto")
    monkeypatch.setattr(train, "_run", too_large)
    with pytest.raises(
        UserError, match=r"out of GPU memory.*take larger GPUs.*TRL's loss of kto needs its batch whole"
    ):
        train.train(kto)


def test_a_diverged_run_is_published_without_weights_and_nothing_is_trained_on_it(models, tokens, step, monkeypatch):
    monkeypatch.setenv("TRIALIGN_CHECKPOINT_SECONDS", "0")
    run = step(recipe("dpo", learning_rate=1e30, warmup=0), models["phi"], tokens(), "diverged")
    facts = train.train(run)
    mark = json.loads((run.out / "model" / "diverged.json").read_text())
    assert mark == {"step": 2, "not_finite": "loss", "value": "nan"}
    assert facts["final"] is None and facts["steps"] == 2
    assert [file.name for file in (run.out / "model").iterdir()] == ["diverged.json"]
    assert _step(run.scratch) == 1, "a checkpoint holds weights that are not finite"
    last = json.loads((run.out / "log.jsonl").read_text().splitlines()[-1], parse_constant=pytest.fail)
    assert last["loss"] == "nan"
    with pytest.raises(UserError, match="diverged at step 2 of its own training: nothing can be trained on it"):
        train.train(step(recipe("dpo"), run.out / "model", tokens(), "child"))


def _step(scratch: Path) -> int:
    checkpoint = newest_checkpoint(scratch)
    return int(checkpoint.name.removeprefix("checkpoint-")) if checkpoint else 0


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (recipe("dpo", view="triple"), "dpo cannot read view 'triple'; it reads chosen-rejected, reference-rejected"),
        (recipe("dpo", {"beta": -1}), "method dpo: beta=-1: Input should be greater than 0"),
        (recipe("dpo", {"betta": 1}), "no parameter 'betta' (did you mean 'beta'?); its parameters: beta"),
    ],
)
def test_mistakes_are_told_before_training(made, message, models, tokens, step):
    with pytest.raises(UserError) as error:
        train.train(step(made, models["mistral"], tokens()))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_rows_are_refused(models, tokens, step):
    with pytest.raises(UserError, match=r"eval\.parquet has no rows"):
        train.train(step(recipe("tpo"), models["mistral"], tokens(4, 0)))


def test_weights_are_saved_at_the_published_dtype(models, tokens, step):
    folder = tokens()
    runs = {name: step(recipe("sft", published_dtype=name), models["phi"], folder, name) for name in ("fp32", "bf16")}
    for run in runs.values():
        train.train(run)
    saved = {dtype: load_file(run.out / "model" / "model.safetensors") for dtype, run in runs.items()}
    assert {weight.dtype for weight in saved["fp32"].values()} == {torch.float32}
    assert {weight.dtype for weight in saved["bf16"].values()} == {torch.bfloat16}
    assert saved["fp32"].keys() == saved["bf16"].keys()
    for name, weight in saved["fp32"].items():
        assert torch.equal(saved["bf16"][name], weight.to(torch.bfloat16)), "trained in fp32, rounded once"
    config = json.loads((runs["bf16"].out / "model" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
