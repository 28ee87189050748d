"""What steps cost: FLOPs against PyTorch's own counter, sizes against real models and optimisers, times by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PhiConfig, PhiForCausalLM

from tests.conftest import BY_TRL
from trialign import config, cost, known, study
from trialign.assumptions import Expectations, ExpectedAnswers, ExpectedBenchmark, ExpectedJudge, Hardware
from trialign.cost import Known, Rows, estimate, forward_flops, train_flops
from trialign.recipes import AnswerRecipe, EvaluateRecipe, FetchRecipe, JudgeRecipe, TrainRecipe
from trialign.settings import AnswerSettings, HarnessTask, HubRepository, JudgeRules, Training

SIZES = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": False, "attn_implementation": "eager",  # which the counter sees
}  # fmt: skip
MODELS = {
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "llama, wide heads": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, head_dim=32)),
    "phi": lambda: PhiForCausalLM(PhiConfig(**SIZES)),
    "tied": lambda: MistralForCausalLM(MistralConfig(**SIZES | {"tie_word_embeddings": True}, sliding_window=None)),
}
PHI2 = {
    "hidden_act": "gelu_new", "hidden_size": 2560, "intermediate_size": 10240, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": None, "tie_word_embeddings": False, "vocab_size": 51200,
}  # fmt: skip
SHAPE = known.shape_from_config(PHI2)
GPU = Hardware(
    gpu="X", tflops=100, tflops_fp32=10, memory_gb=80, bandwidth_gb_s=1000, read_mb_s=1000, start_seconds=0,
    efficiency={"train": 0.5, "forward": 0.5, "decode": 0.5},
)  # fmt: skip


def train(method: str, view: str, **training: object) -> TrainRecipe:
    params = {"beta": 0.1} | ({"alpha": 1.0} if method == "tpo" else {}) if method != "sft" else {}
    return TrainRecipe(
        method=method, params=params, view=view, training=Training(**{"engine": "trl", **training}), seed=1
    )


def counted(model: torch.nn.Module, rows: int, length: int, *, backward: bool) -> int:
    ids = torch.randint(0, SIZES["vocab_size"], (rows, length))
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        if backward:
            loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", MODELS)
def test_flops_of_a_forward_and_a_training_pass_are_those_that_pytorch_counts(name: str) -> None:
    model = MODELS[name]()
    shape = known.shape_from_config(model.config.to_dict())
    for rows, length in ((2, 32), (3, 128)):
        mine = forward_flops(shape, length, rows * length)
        assert mine == pytest.approx(counted(model, rows, length, backward=False), rel=0.01)
        # the first layer's input takes no gradient, which the formula does not know
        assert 3 * mine == pytest.approx(counted(model, rows, length, backward=True), rel=0.05)


def test_gradient_checkpointing_costs_another_forward_pass() -> None:
    model = MODELS["mistral"]()
    plain = counted(model.train(), 2, 64, backward=True)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    shape = known.shape_from_config(model.config.to_dict())
    flops = [
        train_flops(train("sft", "reference", gradient_checkpointing=on), shape, Rows(10, 1, 64, 64))[0]
        for on in (False, True)
    ]
    # the last layer's output, and the output layer, are not computed again
    measured = counted(model, 2, 64, backward=True) / plain
    assert 1.2 < measured <= flops[1] / flops[0] <= 1.34


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_a_models_but_for_biases_and_norms(name: str) -> None:
    model = MODELS[name]()
    large = {key: value for key, value in model.named_parameters() if value.dim() == 2}
    assert known.shape_from_config(model.config.to_dict()).parameters == sum(p.numel() for p in large.values())


def test_parameters_of_the_papers_models_are_the_published_numbers() -> None:
    """7,241,732,096 and 2,779,683,840, as the hub's safetensors index has them."""
    experiment = config.load_files([Path("config/config.yaml")])
    for name, parameters in (("mistral", 7_241_732_096), ("phi2", 2_779_683_840)):
        assert experiment.models[name].shape.parameters == pytest.approx(parameters, rel=1e-3)
    assert experiment.models["phi2"].shape == SHAPE


def test_a_training_counts_branches_the_reference_model_and_ktos_mismatches() -> None:
    rows = Rows(train=100, eval=0, length=50, longest=64)
    token = 2 * SHAPE.matrix_parameters + 4 * 32 * 2560 * 50
    passes = {
        ("sft", "reference"): 3, ("dpo", "chosen-rejected"): 2 * 3 + 2, ("cpo", "chosen-rejected"): 2 * 3,
        ("tpo", "triple"): 3 * 3,
        # trained: 2 branches; scored: 2 by the reference, and 2 mismatches by the policy and by the reference
        ("kto", "chosen-rejected"): 2 * 3 + 2 + 4,
    }  # fmt: skip
    for (method, view), number in passes.items():
        assert train_flops(train(method, view), SHAPE, rows)[0] == pytest.approx(100 * 50 * number * token), method
    assert train_flops(train("sft", "reference", epochs=2), SHAPE, rows)[1] == 2 * 100 * 50
    assert train_flops(train("sft", "reference", max_steps=3, batch=4), SHAPE, rows)[1] == 3 * 4 * 50


def test_packed_rows_are_whole_and_attend_over_their_length() -> None:
    flops, tokens = train_flops(train("sft", "conversation", packing=200), SHAPE, Rows(100, 0, 50, 2048))
    assert tokens == 100 * 50  # 25 rows of 200
    assert flops == pytest.approx(3 * 100 * 50 * (2 * SHAPE.matrix_parameters + 4 * 32 * 2560 * 200))


def test_the_states_of_fine_tuning_are_what_torch_holds() -> None:
    """fp32 weights, gradients and AdamW's moments of a real model after a step; a reference adds its weights."""
    model = MODELS["mistral"]()
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(0, 96, (1, 8))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    tensors = [*model.parameters(), *(p.grad for p in model.parameters())]
    tensors += [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    shape = known.shape_from_config(model.config.to_dict())
    memory = cost.train_memory_mb(train("sft", "reference", precision="fp32"), shape, 0, 1) * cost.MB
    assert memory == pytest.approx(sum(t.numel() * t.element_size() for t in tensors), rel=0.01)
    with_reference = cost.train_memory_mb(train("dpo", "chosen-rejected", precision="fp32"), shape, 0, 1) * cost.MB
    assert with_reference - memory == 4 * shape.parameters


def test_which_gpus_are_enough_follows_from_the_states_sharded_over_them() -> None:
    """Mistral-7B in bf16 with fp32 master weights: 18 bytes a parameter, 130 GB, before any activation."""
    mistral = config.load_files([Path("config/config.yaml")]).models["mistral"].shape
    recipe = train("tpo", "triple", batch=16, micro_batch=1, gradient_checkpointing=True)
    assert cost.train_memory_mb(recipe, mistral, 0, 1) == pytest.approx(18 * 7.24e9 / 1e6, rel=1e-3)
    enough = cost.enough_gpus(recipe, mistral, 1024)
    # the states take 130 GB, 65 on each of two and 33 on each of four; three rows of 1024 tokens take 3 GB
    assert enough == ["4 x A100 40GB", "2 x A100 or H100 80GB", "1 x H200 141GB"]
    for gpus, memory, fits in ((1, 80, False), (2, 80, True), (2, 40, False), (4, 40, True)):
        assert cost.fits(cost.train_memory_mb(recipe, mistral, 1024, gpus), memory) is fits


@pytest.fixture
def by_trl(tmp_path: Path) -> config.Experiment:
    """The paper's study by stock TRL, SFT in micro-batches."""
    overlay = tmp_path / "trl.yaml"
    overlay.write_text(BY_TRL)
    return config.load_files([Path("config/config.yaml"), overlay])


def test_what_fits_of_the_papers_trainings_by_trl_on_its_four_a100(by_trl: config.Experiment) -> None:
    """What the plan says of a GPU's room is what its memory says: a prompt or a token more is too much."""
    paper = by_trl
    fitting = ["mistral+sft10k", "mistral+sft+dpo", "mistral+sft+ipo", "phi2+sft", "phi2+sft+dpo"]
    assert known.memory_problems(paper, fitting) == [] and paper.resources.train.gpus == 4
    split = known.memory_problems(paper, fitting, 32)
    assert len(split) == 1 and "(sft10k) on each of 4 GPU(s), of 32: enough would be 8 x A100 40GB" in split[0]
    whole = known.memory_problems(paper, ["phi2+tpo", "phi2+orpo"])
    assert len(whole) == 1 and "TRL's loss of tpo, orpo needs its batch whole" in whole[0]
    recipe, shape = train("tpo", "triple", gradient_checkpointing=True), paper.models["phi2"].shape
    prompts, tokens = cost.room(recipe, shape, 1024, 1, 80)
    for batch, longest, fits in (
        (prompts, 1024, True), (prompts + 1, 1024, False), (16, tokens, True), (16, tokens + 1, False),
    ):  # fmt: skip
        sized = train("tpo", "triple", gradient_checkpointing=True, batch=batch)
        assert cost.fits(cost.train_memory_mb(sized, shape, longest, 1), 80) is fits, (batch, longest)
    assert cost.room(recipe, paper.models["mistral"].shape, 1024, 1, 80) == (0, 0)


def test_the_papers_trainings_fit_its_four_a100() -> None:
    """Those that TRL keeps to one GPU, too; on smaller GPUs the line says how many tokens at a time would do."""
    paper = config.load_files([Path("config/config.yaml")])
    lineages = [
        "mistral+sft10k",
        "mistral+tpo",
        "mistral+sft+kto",
        "mistral+orpo",
        "mistral+sft+dpo",
        "phi2+tpo",
        "phi2+sft+cpo",
    ]
    assert known.memory_problems(paper, lineages) == []
    assert [study.train_gpus(paper, paper.lineage(each)) for each in lineages] == [4] * 7
    assert not any("TRL" in line for line in known.memory_problems(paper, lineages, 40))
    recipe, shape = train("tpo", "triple", engine="packed", micro_batch_tokens=4096), paper.models["mistral"].shape
    less = cost.train_memory_mb(recipe, shape, 1024, 4)
    more = cost.train_memory_mb(train("tpo", "triple", engine="packed", micro_batch_tokens=8192), shape, 1024, 4)
    assert more - less == pytest.approx(4096 * cost._activations(recipe, shape) / cost.MB)
    reference = train("dpo", "chosen-rejected", engine="packed"), train("dpo", "chosen-rejected", micro_batch=1)
    assert cost.states_mb(reference[1], shape) - cost.states_mb(reference[0], shape) == pytest.approx(
        4 * shape.parameters / cost.MB
    )


def test_times_are_work_over_the_hardwares_rate() -> None:
    expect = Expectations(
        benchmarks={"arc": ExpectedBenchmark(items=100, requests=4, length=50)},
        answers=ExpectedAnswers(questions=20, prompt=100, answer=200, longest=500),
        judge=ExpectedJudge(tokens_in=1000, tokens_out=100, seconds=3),
    )
    known_ = Known(GPU, expect, SHAPE, weight_bytes=2, gpus=1, rows=Rows(1000, 0, 100, 128))
    load = 2 * SHAPE.parameters / 1e9  # of 2 bytes each at 1 GB/s

    training = estimate(train("cpo", "chosen-rejected", precision="bf16", published_dtype="bf16"), known_)
    token = 2 * SHAPE.matrix_parameters + 4 * 32 * 2560 * 100
    assert training.seconds == pytest.approx(load + 3 * token * 2 * 1000 * 100 / 50e12 + 2 * load)
    assert training.disk_mb == pytest.approx(2 * SHAPE.parameters / 1e6, rel=0.01)

    task = HarnessTask(include="arc.yaml", shots=0, metric="acc")
    suite = EvaluateRecipe(benchmarks={"arc": task}, bos=False, batch_size=8)
    token = 2 * SHAPE.matrix_parameters + 4 * 32 * 2560 * 50
    assert estimate(suite, known_).seconds == pytest.approx(load + token * 100 * 4 * 50 / 50e12)
    slower = estimate(suite, replace(known_, weight_bytes=4)).seconds  # read twice as long, and computed in fp32
    assert slower == pytest.approx(2 * load + token * 100 * 4 * 50 / 5e12)
    limited = EvaluateRecipe(benchmarks={"arc": task.model_copy(update={"limit": 10})}, bos=False, batch_size=8)
    assert estimate(limited, known_).tokens == 10 * 4 * 50

    answers = estimate(AnswerRecipe(answers=AnswerSettings(batch_size=10), bos=False, seed=1), known_)
    cache = 10 * 2 * 32 * 2560 * 2 * (100 + 100)
    decode = 2 * 2 * 500 * (2 * SHAPE.parameters + cache) / 500e9  # two turns of two batches of 500 steps
    token = 2 * SHAPE.matrix_parameters + 4 * 32 * 2560 * 100
    assert answers.seconds == pytest.approx(load + decode + token * 40 * 100 / 50e12)

    judge = estimate(JudgeRecipe(name="j", benchmark="b", judge=JudgeRules(kind="openai", model="m")), known_)
    assert (judge.tokens_in, judge.tokens_out) == (40_000, 4_000)
    assert judge.seconds == pytest.approx(40 * 3, abs=5)

    fetch = FetchRecipe(repository=HubRepository(repo="a/b", type="model", revision="main"))
    assert estimate(fetch, replace(known_, download_mb=5000)).seconds == pytest.approx(5000 / 50, abs=5)


def test_a_model_of_unknown_shape_is_said_to_be_unknown() -> None:
    found = estimate(train("tpo", "triple"), Known(GPU, Expectations(), gpus=2))
    assert (found.seconds, found.gpus) == (3600, 2) and "shape" in found.notes[0]


@pytest.mark.parametrize("text", ["{}", '{"hidden_size": 64}', '{"hidden_size": "wide", "num_hidden_layers": 2}'])
def test_what_is_no_transformers_config_has_no_shape(text: str) -> None:
    import json

    assert known.shape_from_config(json.loads(text)) is None
