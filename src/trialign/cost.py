"""What a step costs: `estimate` turns its recipe and what is known of its inputs into time, memory, disk and tokens.

FLOPs of a transformer of N matrix parameters and L layers of attention width a over sequences of T tokens:

- forward, a token: 2 N + 4 L a T. A matrix product is 2 FLOPs per parameter; QK' and the weighted sum of V take
  2 L a T each (PaLM, arXiv 2204.02311, appendix B, which counts the whole T x T square, as a dense kernel computes it).
- training: 3 times that (backward is twice forward; the "6 N D" of arXiv 2001.08361, section 2.1), and 4 times with
  gradient checkpointing, which runs forward again (arXiv 1604.06174).
- a method's data: each branch of its view is a sequence; a reference model adds a forward pass of all of them; KTO adds
  one of the mismatched pairs, by the policy and by the reference (docs of trialign.methods).

Time is FLOPs over the peak of the hardware times an efficiency. Generation is bound by memory instead: every new token
of a batch reads the weights and the keys and values once (arXiv 2211.05102, section 2). Both become measured numbers as
runs finish: `Known.correction` is measured over estimated time (`known.py`).

Memory of full fine-tuning, a parameter: 4 bytes of fp32 master weights, 4 of gradients, 8 of AdamW's moments
(arXiv 1910.02054, section 3.1, with fp32 gradients), 2 of bf16 copies under autocast, 4 for a reference model; of
activations: the residual stream of each layer and one layer's insides with checkpointing, all layers' without (34
bytes per token and unit of width and layer, arXiv 2205.05198, section 4.1, flash attention), and the logits.

Nothing here imports torch or reads a file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from trialign import methods, recipes
from trialign.assumptions import Expectations, ExpectedBenchmark, Hardware, Shape

MB = 10**6
GB = 10**9
MASTER_BYTES = 4  # fp32 master weights
SAVED_BYTES = {"fp32": 4, "bf16": 2}  # of a model as it is published; it is evaluated in the dtype that it has
PUBLISHED_BYTES = 2  # published checkpoints are bf16 or fp16
TURNS = 2  # of a judged question
BRANCHES = {"conversation": 1, "reference": 1, "reference-rejected": 2, "chosen-rejected": 2, "triple": 3}
USABLE = 0.92  # share of a GPU's memory that PyTorch's allocator can fill
GPUS = {"A100 40GB": 40, "A100 or H100 80GB": 80, "H200 141GB": 141}  # NVIDIA's data sheets
SMALL_MB = 5  # a table, a card, a tokenizer
HOST_MB = 4000  # a Python process with torch and a trainer
_CHUNK_LOGITS = 1 << 24  # training.logps.CHUNK_BYTES of fp32
_UNDECLARED = ExpectedBenchmark()


@dataclass(frozen=True)
class Rows:
    """A prepared data set: rows to train on, rows held out, tokens of a mean and of the longest sequence."""

    train: int
    eval: int
    length: float
    longest: int


@dataclass(frozen=True)
class Known:
    """What is known of a step's inputs and of where it runs.

    shape: of the base model; None: unknown. weight_bytes: of the model that it reads, a parameter. rows: of its data.
    download_mb: of a source. gpus: of all nodes. correction: measured over estimated time of such steps; `runs` of them
    were measured.
    """

    hardware: Hardware
    expect: Expectations
    shape: Shape | None = None
    weight_bytes: int = MASTER_BYTES
    rows: Rows | None = None
    download_mb: int = 0
    gpus: int = 0
    nodes: int = 1
    threads: int = 1
    correction: float = 1.0
    runs: int = 0


@dataclass(frozen=True)
class Estimate:
    """What a step takes.

    seconds: of wall time; gpus: how many are busy for it; gpu_mb: memory of each; mem_mb: of each host; disk_mb: what
    it leaves; scratch_mb: what it holds besides while it runs; flops; tokens: that the model reads or writes;
    tokens_in, tokens_out: of the judge's endpoint.
    """

    seconds: float
    gpus: int = 0
    gpu_mb: float = 0
    mem_mb: float = 1000
    disk_mb: float = 1
    scratch_mb: float = 0
    flops: float = 0
    tokens: float = 0
    tokens_in: float = 0
    tokens_out: float = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def gpu_hours(self) -> float:
        """GPUs times hours."""
        return self.gpus * self.seconds / 3600


def forward_flops(shape: Shape, length: float, tokens: float) -> float:
    """Return the FLOPs of a forward pass over `tokens` tokens in sequences of `length`."""
    return tokens * (2 * shape.matrix_parameters + 4 * shape.layers * shape.attention_width * length)


def estimate(recipe: recipes.Recipe, known: Known) -> Estimate:
    """Return what a step takes. Where the model's shape is unknown, an hour, and a note that says so."""
    found = _estimate(recipe, known)
    return replace(found, seconds=found.seconds * known.correction)


def _estimate(recipe: recipes.Recipe, known: Known) -> Estimate:
    hardware = known.hardware
    match recipe:
        case recipes.FetchRecipe():
            return Estimate(5 + known.download_mb / hardware.download_mb_s, disk_mb=known.download_mb)
        case recipes.ImportRecipe():  # hard links; every file is hashed
            return Estimate(5 + known.download_mb / hardware.read_mb_s)
        case recipes.ChatRecipe() | recipes.TriplesRecipe():
            return Estimate(10 + known.download_mb / 20, mem_mb=2000, disk_mb=SMALL_MB + known.download_mb)
        case recipes.TokensRecipe() if known.rows:
            tokens = (known.rows.train + known.rows.eval) * known.rows.length * (1 if recipe.kind == "chat" else 3)
            return Estimate(10 + tokens / 2e5, mem_mb=2000, disk_mb=SMALL_MB + 4 * tokens / MB, tokens=tokens)
        case recipes.JudgeRecipe():
            return _judge(recipe, known)
        case (
            recipes.TrainRecipe() | recipes.PretrainRecipe() | recipes.ReferenceRecipe()
            | recipes.EvaluateRecipe() | recipes.AnswerRecipe()
        ):  # fmt: skip
            if known.shape is None:
                note = "a model without `shape`: planned as an hour"
                return Estimate(3600, gpus=known.gpus, mem_mb=16000, notes=(note,))
            return _of_model(recipe, known, known.shape)
    return Estimate(10)


def _of_model(recipe: recipes.Recipe, known: Known, shape: Shape) -> Estimate:
    match recipe:
        case recipes.TrainRecipe():
            return _train(recipe, known, shape)
        case recipes.PretrainRecipe(settings=settings):
            tokens = settings.steps * settings.batch * settings.block
            flops = 3 * forward_flops(shape, settings.block, tokens)
            seconds = _start(known, shape) + flops / _rate(known, "train", "fp32")
            disk = SMALL_MB + MASTER_BYTES * shape.parameters / MB
            return Estimate(
                seconds, gpus=known.gpus, mem_mb=HOST_MB, disk_mb=disk, scratch_mb=2 * disk, flops=flops, tokens=tokens
            )
        case recipes.ReferenceRecipe():
            return _reference(recipe, known, shape)
        case recipes.EvaluateRecipe():
            return _evaluate(recipe, known, shape)
        case recipes.AnswerRecipe():
            return _answer(recipe, known, shape)
    raise TypeError(recipe)


# --- training ---------------------------------------------------------------------------------------------------------


def _train(recipe: recipes.TrainRecipe, known: Known, shape: Shape) -> Estimate:
    rows = known.rows or Rows(1000, 100, 500, 1000)
    flops, tokens = train_flops(recipe, shape, rows)
    weights, saved = (
        MASTER_BYTES * shape.parameters / MB,
        SAVED_BYTES[recipe.training.published_dtype] * shape.parameters / MB,
    )
    reference = _holds_reference(recipe)
    on_device = train_memory_mb(recipe, shape, rows.longest, max(1, known.gpus))
    processes = max(1, known.gpus // known.nodes)  # of a host: each reads the whole model before it is sharded
    host = processes * (HOST_MB + weights * (2.2 if reference else 1.2))
    disk = known.hardware.read_mb_s  # at the end the model is written, and read again for its hashes
    return Estimate(
        seconds=_start(known, shape) + flops / _rate(known, "train", recipe.training.precision) + 2 * saved / disk,
        gpus=known.gpus,
        gpu_mb=on_device if known.gpus else 0,
        mem_mb=host if known.gpus else HOST_MB + on_device,
        disk_mb=SMALL_MB + saved,
        # a checkpoint has weights and both moments; the one before goes when the next is whole
        scratch_mb=2 * 3 * weights,
        flops=flops,
        tokens=tokens,
    )


def train_flops(recipe: recipes.TrainRecipe, shape: Shape, rows: Rows) -> tuple[float, float]:
    """Return the FLOPs of a stage, evaluation at its end included, and the tokens that the policy trains on."""
    training, method = recipe.training, methods.get(recipe.method)
    branches = BRANCHES[recipe.view]
    length, number = rows.length, rows.train
    if training.packing:  # the batch counts packed rows
        length, number = training.packing, math.ceil(rows.train * rows.length / training.packing)
    # by branches: what a prompt adds to both sides is not known here
    epochs = training.epochs * (BRANCHES[training.tokens_of] / branches if training.tokens_of else 1)
    steps = math.ceil(number / training.batch) * epochs
    prompts = number * epochs
    if training.max_steps and training.max_steps < steps:
        prompts = training.max_steps * training.batch
    once = forward_flops(shape, length, branches * length)  # a prompt's branches
    mismatches = once if method.reads_mismatched else 0  # scored by the policy without gradient, and by the reference
    stored = training.engine == "packed"  # the reference's are there
    scored = (once if method.needs_reference and not stored else 0) + (1 if stored else 2) * mismatches
    passes = 4 if training.gradient_checkpointing else 3
    evaluated = rows.eval * rows.length / length
    flops = prompts * (passes * once + scored) + evaluated * (once + scored)
    return flops, prompts * branches * length


def train_memory_mb(recipe: recipes.TrainRecipe, shape: Shape, longest: int, gpus: int) -> float:
    """Return the memory of each of `gpus` devices in MB, states sharded (FSDP2), at the longest micro-batch."""
    training = recipe.training
    if training.engine == "packed":
        return states_mb(recipe, shape) / gpus + packed_mb(recipe, shape, longest, training.micro_batch_tokens)
    prompts = training.micro_batch or max(1, training.batch // gpus)
    return states_mb(recipe, shape) / gpus + prompts * (training.packing or longest) * _position_mb(recipe, shape)


def packed_mb(recipe: recipes.TrainRecipe, shape: Shape, longest: int, tokens: int) -> float:
    """Return the memory of a packed row of `tokens`, or of one example that is longer, and of its examples' logits."""
    example = recipe.training.packing or BRANCHES[recipe.view] * longest
    logits = 2 * 4 * max(_CHUNK_LOGITS, example * shape.vocab_size)  # in fp32, in place, and what makes them
    return (max(tokens, example) * _activations(recipe, shape) + logits) / MB


def states_mb(recipe: recipes.TrainRecipe, shape: Shape) -> float:
    """Return the memory of weights, gradients, moments and copies."""
    states = MASTER_BYTES + 4 + 8 + (2 if recipe.training.precision == "bf16" else 0)
    if _holds_reference(recipe):
        states += MASTER_BYTES
    return states * shape.parameters / MB


def _holds_reference(recipe: recipes.TrainRecipe) -> bool:
    """Return whether a second model is in memory."""
    return methods.get(recipe.method).needs_reference and recipe.training.engine == "trl"


def _position_mb(recipe: recipes.TrainRecipe, shape: Shape) -> float:
    """Return the memory of activations and logits of one position of a prompt's branches."""
    width = 2 if recipe.training.precision == "bf16" else 4
    logits = shape.vocab_size * (width + 4 + 4)  # as they come, in fp32, and their gradient
    return BRANCHES[recipe.view] * (_activations(recipe, shape) + logits) / MB


def _activations(recipe: recipes.TrainRecipe, shape: Shape) -> float:
    """Return the bytes of a token's activations."""
    width = 2 if recipe.training.precision == "bf16" else 4
    layer = 17 * width * shape.hidden_size  # 34 bytes in half precision
    stream = shape.layers * 4 * shape.hidden_size
    return stream + layer if recipe.training.gradient_checkpointing else shape.layers * layer


def room(recipe: recipes.TrainRecipe, shape: Shape, longest: int, gpus: int, memory_gb: float) -> tuple[int, int]:
    """Return how many prompts of `longest` tokens, and how many tokens of a batch as declared, `gpus` such GPUs hold.

    Prompts: of one micro-batch; tokens: the length of a prompt and its response. Both 0 where the states alone, without
    a token, are too large.
    """
    left = max(0.0, USABLE * memory_gb * 2**30 / MB - states_mb(recipe, shape) / gpus)
    positions = left / _position_mb(recipe, shape)
    prompts = recipe.training.micro_batch or max(1, recipe.training.batch // gpus)
    return int(positions // (recipe.training.packing or longest)), int(positions // prompts)


def enough_gpus(recipe: recipes.TrainRecipe, shape: Shape, longest: int) -> list[str]:
    """Return the smallest number of each kind of GPU that a training stage fits on, such as `4 x A100 40GB`."""
    found = []
    for name, memory in GPUS.items():
        fitting = (n for n in (1, 2, 4, 8, 16, 32) if fits(train_memory_mb(recipe, shape, longest, n), memory))
        number = next(fitting, None)
        found += [f"{number} x {name}"] if number else []
    return found


def fits(gpu_mb: float, memory_gb: float) -> bool:
    """Return whether a job's memory on each GPU fits one of `memory_gb` (GiB, as vendors count theirs)."""
    return gpu_mb * MB <= USABLE * memory_gb * 2**30


def _reference(recipe: recipes.ReferenceRecipe, known: Known, shape: Shape) -> Estimate:
    rows = known.rows or Rows(1000, 100, 500, 1000)
    tokens = (rows.train + rows.eval) * BRANCHES[recipe.view] * rows.length * (2 if recipe.mismatched else 1)
    flops = forward_flops(shape, rows.length, tokens)
    seconds = _start(known, shape) + flops / _rate(known, "forward", recipe.precision)
    return _scored(replace(known, weight_bytes=MASTER_BYTES), shape, seconds, flops, tokens)


# --- evaluation -------------------------------------------------------------------------------------------------------


def _evaluate(recipe: recipes.EvaluateRecipe, known: Known, shape: Shape) -> Estimate:
    flops = tokens = 0.0
    for name, task in recipe.benchmarks.items():
        expected = known.expect.benchmarks.get(name, _UNDECLARED)
        limit = task.limit * max(1, len(task.subsets)) if task.limit else expected.items
        read = min(expected.items, limit) * expected.requests * expected.length
        tokens += read
        flops += forward_flops(shape, expected.length, read)
    seconds = _start(known, shape) + flops / _rate(known, "forward", _precision(known))
    return _scored(known, shape, seconds, flops, tokens)


def _answer(recipe: recipes.AnswerRecipe, known: Known, shape: Shape) -> Estimate:
    expected, settings = known.expect.answers, recipe.answers
    answers = TURNS * expected.questions
    prefill = forward_flops(shape, expected.prompt, answers * expected.prompt)
    steps = math.ceil(expected.questions / settings.batch_size) * TURNS * min(expected.longest, settings.max_new_tokens)
    cache = 2 * shape.layers * shape.kv_width * known.weight_bytes * (expected.prompt + expected.answer / 2)
    read = shape.parameters * known.weight_bytes + settings.batch_size * cache
    hardware = known.hardware
    bandwidth = hardware.bandwidth_gb_s * known.gpus or hardware.core_bandwidth_gb_s * known.threads
    decode = steps * read / (GB * bandwidth * hardware.efficiency.decode)
    seconds = _start(known, shape) + prefill / _rate(known, "forward", _precision(known)) + decode
    tokens = answers * (expected.prompt + min(expected.answer, settings.max_new_tokens))
    written = answers * min(expected.answer, settings.max_new_tokens)
    return _scored(known, shape, seconds, prefill + forward_flops(shape, expected.prompt, written), tokens)


def _scored(known: Known, shape: Shape, seconds: float, flops: float, tokens: float) -> Estimate:
    weights = known.weight_bytes * shape.parameters / MB
    return Estimate(
        seconds,
        gpus=known.gpus,
        gpu_mb=1.2 * weights + HOST_MB if known.gpus else 0,
        mem_mb=HOST_MB + 1.2 * weights,
        flops=flops,
        tokens=tokens,
    )


def _judge(recipe: recipes.JudgeRecipe, known: Known) -> Estimate:
    if recipe.judge.kind == "rubric":
        return Estimate(2)
    expected = known.expect.judge
    requests = TURNS * known.expect.answers.questions * recipe.judge.repeats
    return Estimate(
        5 + requests * expected.seconds,
        tokens_in=requests * expected.tokens_in,
        tokens_out=requests * expected.tokens_out,
    )


# --- hardware ---------------------------------------------------------------------------------------------------------


def _start(known: Known, shape: Shape) -> float:
    """Return the time until a model is loaded."""
    return known.hardware.start_seconds + known.weight_bytes * shape.parameters / MB / known.hardware.read_mb_s


def _rate(known: Known, work: str, precision: str) -> float:
    """Return the FLOP/s that a kind of work reaches on the declared hardware."""
    hardware = known.hardware
    teraflops = (hardware.tflops if precision == "bf16" else hardware.tflops_fp32) * known.gpus
    peak = teraflops * 1e12 or hardware.core_gflops * 1e9 * known.threads
    return peak * getattr(hardware.efficiency, work)


def _precision(known: Known) -> str:
    """Models are evaluated in the precision that they were saved in (evaluation/models.py)."""
    return "bf16" if known.weight_bytes == PUBLISHED_BYTES else "fp32"
