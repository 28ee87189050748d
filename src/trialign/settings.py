"""Typed settings that a config states and a recipe carries: training, data, benchmarks, judge, demo world.

Units are in the descriptions, which also make the config reference. Nothing here imports torch.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class Settings(BaseModel):
    """Base: frozen, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


UNKNOWN = "unknown"  # in place of a file's SHA-256


class HubRepository(Settings):
    """A repository of the hub."""

    kind: Literal["hub"] = "hub"
    repo: str = Field(pattern=r"^[^/\s]+/[^/\s]+$", description="owner/name on the hub")
    type: Literal["model", "dataset", "space"] = Field(description="what kind of repository it is")
    revision: str = Field(min_length=1, description="commit hash, tag or branch")
    include: tuple[str, ...] = Field(default=(), description="file patterns to fetch; empty: all files")
    folder: str = Field(default="", description="the folder of the repository that holds the data; empty: its root")


class WebFiles(Settings):
    """Single files of the web, for data that no repository of the hub holds."""

    kind: Literal["web"] = "web"
    base: str = Field(
        pattern=r"^https?://\S+/$",
        description="the address before the files' names; one that names a commit or a version, so that it stays",
    )
    files: dict[
        Annotated[str, Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$")],
        Annotated[str, Field(pattern="^([0-9a-f]{64}|unknown)$")],
    ] = Field(min_length=1, description="file -> SHA-256 of its contents, or `unknown`: the lock's, or as it comes")


class WorldPart(Settings):
    """A part of the generated demo world."""

    kind: Literal["world"] = "world"
    part: str = Field(
        description="folder of the world: pretrain, ultrachat, ultrafeedback, mt_bench, benchmarks/<name>"
    )


class LocalFolder(Settings):
    """A folder of the user's own."""

    kind: Literal["local"] = "local"
    path: str = Field(description="path of the folder, relative to the working directory")


Source = Annotated[HubRepository | WebFiles | WorldPart | LocalFolder, Field(discriminator="kind")]


class WorldSettings(Settings):
    """The generated demo world: its seed and its sizes."""

    seed: int = Field(description="seed of the world; another seed is another world")
    documents: int = Field(default=6000, gt=0, description="pre-training texts")
    conversations: int = Field(default=1500, gt=0, description="conversations to train on")
    test_conversations: int = Field(default=100, gt=0, description="conversations held out")
    feedback: int = Field(default=1800, gt=0, description="rows of preferences, blemished ones included")
    items: int = Field(default=200, gt=0, description="scored items of each benchmark; each MMLU subject has 0.3 of it")
    questions: int = Field(default=25, gt=0, description="two-turn questions of each of the eight categories")


class PretrainSettings(Settings):
    """A tiny base model, pre-trained on the demo world. Lengths are in tokens, batches in blocks."""

    architecture: Literal["mistral", "phi"] = Field(description="transformers model class")
    hidden_size: int = Field(default=64, gt=0, description="width of the model")
    intermediate_size: int = Field(default=256, gt=0, description="width of the feed-forward layers")
    layers: int = Field(default=2, gt=0, description="number of layers")
    heads: int = Field(default=4, gt=0, description="attention heads")
    kv_heads: int = Field(default=2, gt=0, description="key and value heads")
    positions: int = Field(default=512, gt=0, description="longest context")
    block: int = Field(default=256, gt=0, description="length of a training block")
    batch: int = Field(default=2, gt=0, description="blocks of one step")
    steps: int = Field(default=4800, gt=0, description="training steps")
    learning_rate: float = Field(default=4e-3, gt=0, description="peak learning rate; cosine to a tenth of it")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps that warm up")
    checkpoint_every: int = Field(default=800, gt=0, description="steps between two checkpoints")


class Training(Settings):
    """One training stage. Lengths are in tokens, batch sizes in prompts."""

    learning_rate: float = Field(default=5e-7, gt=0, description="peak learning rate")
    schedule: Literal["linear", "cosine", "constant"] = Field(default="linear", description="learning-rate schedule")
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of the steps that warm up")
    batch: int = Field(default=16, gt=0, description="global batch, in prompts, over all devices")
    micro_batch: int | None = Field(
        default=None,
        gt=0,
        description="engine trl: prompts of one forward pass on one device; null: the batch over the devices",
    )
    epochs: float = Field(default=1, gt=0, description="passes over the training data")
    max_steps: int | None = Field(default=None, gt=0, description="stop after this many steps; null: by epochs")
    tokens_of: Literal["reference", "reference-rejected", "chosen-rejected", "triple"] | None = Field(
        default=None,
        description="train for as many steps as it takes to read the tokens that `epochs` passes of this view of the "
        "same triples hold, each prompt counted once: those that read fewer responses take more; null: `epochs`",
    )
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW weight decay")
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW beta1")
    adam_beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW beta2")
    adam_epsilon: float = Field(default=1e-8, gt=0, description="AdamW epsilon")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradient clipping norm")
    precision: Literal["bf16", "fp32"] = Field(default="bf16", description="compute precision; master weights are fp32")
    published_dtype: Literal["fp32", "bf16"] = Field(default="fp32", description="dtype of the weights that are saved")
    engine: Literal["packed", "trl"] = Field(
        default="packed",
        description="what trains: the packed engine (each prompt once, nothing padded), or the stock TRL trainer",
    )
    micro_batch_tokens: int = Field(
        default=16_384, gt=0, description="engine packed: tokens of one forward pass on one device, at most"
    )
    packing: int | None = Field(
        default=None,
        gt=0,
        description="SFT: pack what it reads into rows of this many tokens, cut where a row is full (TRL's `wrapped`); "
        "the batch counts rows then; null: a conversation is a row",
    )
    gradient_checkpointing: bool = Field(default=False, description="recompute activations in the backward pass")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout in the policy, whatever the checkpoint ships")


class ChatRules(Settings):
    """How conversations in UltraChat 200k's schema are prepared for SFT."""

    train_split: str = Field(default="train_sft", description="split (file stem or hub split) to train on")
    eval_split: str = Field(default="test_sft", description="split to evaluate the loss on")
    train_rows: int | None = Field(default=None, gt=0, description="rows to sample for training; null: all")
    eval_rows: int | None = Field(default=None, gt=0, description="rows to sample for evaluation; null: all")
    seed: int = Field(default=42, description="seed of the sample")


class ChatData(ChatRules):
    """Conversations for SFT, in UltraChat 200k's schema."""

    kind: Literal["chat"] = "chat"
    source: str = Field(description="a name under `sources`")
    max_length: int = Field(
        default=2048, gt=0, description="longest conversation; longer ones are counted and truncated"
    )


class FeedbackRules(Settings):
    """How scored completions in openbmb/UltraFeedback's schema are made into triples."""

    split: str = Field(default="train", description="split to read")
    train_rows: int = Field(gt=0, description="prompts to train on")
    eval_rows: int = Field(gt=0, description="prompts held out")
    score: Literal["overall_score", "fine-grained_score"] = Field(
        default="overall_score", description="score to rank by"
    )
    ties: Literal["paper", "released"] = Field(
        default="paper",
        description="paper: three distinct responses, strictly ordered ends; released: the authors' builder",
    )
    exclude_sources: tuple[str, ...] = Field(default=(), description="UltraFeedback `source` values to leave out")
    seed: int = Field(default=42, description="seed of the sample and the split")


class FeedbackData(FeedbackRules):
    """Scored completions in openbmb/UltraFeedback's schema, made into triples."""

    kind: Literal["triples"] = "triples"
    source: str = Field(description="a name under `sources`")
    max_length: int = Field(
        default=1024, gt=0, description="longest prompt + response; longer rows are dropped and counted"
    )
    max_prompt_length: int = Field(default=512, gt=0, description="longest prompt; longer rows are dropped and counted")


Data = Annotated[ChatData | FeedbackData, Field(discriminator="kind")]


class HarnessTask(Settings):
    """How lm-eval scores a benchmark, by the harness's own task definition."""

    include: str = Field(
        description="the task file, relative to lm_eval/tasks, or one of ours: trialign/<file>; {subset} is filled in"
    )
    subsets: tuple[str, ...] = Field(default=(), description="subtasks (MMLU's subjects); empty: one task")
    shots: int = Field(ge=0, description="few-shot examples")
    metric: str = Field(description="the harness's metric")
    aggregate: Literal["items", "subsets"] = Field(
        default="items", description="items: mean over items; subsets: unweighted mean of the subsets' means"
    )
    split: str = Field(default="test", description="the split that is scored")
    limit: int | None = Field(default=None, gt=0, description="items per task; null: all")


class HarnessBenchmark(HarnessTask):
    """A benchmark that lm-eval scores."""

    kind: Literal["harness"] = "harness"
    label: str = Field(description="column heading")
    suite: str = Field(
        pattern=r"^[a-z][a-z0-9_]*$",
        description="benchmarks of one suite are evaluated in one process on one loaded model",
    )
    source: str = Field(description="a name under `sources`: where the data is")
    question: str | None = Field(
        default=None,
        description="the field of an item that holds its question, to find it in training data; null: the first of "
        "question, question_stem, sentence, ctx, inputs, input that there is",
    )
    ours: tuple[str, ...] = Field(default=(), description="which of these settings the paper does not state")


class JudgedBenchmark(Settings):
    """A benchmark of two-turn questions that a judge rates from 1 to 10."""

    kind: Literal["judged"] = "judged"
    label: str = Field(description="column heading; it names the judge where there are several")
    judge: str = Field(description="a name under `judges`")
    metric: str = Field(
        default="score",
        description="score, first_turn, second_turn; fastchat: the score by FastChat's convention; or a component that "
        "the judge names",
    )
    source: str = Field(description="a name under `sources`: where the questions are")

    @property
    def suite(self) -> str:
        """The suite, as a path below a run."""
        return f"mtbench/{self.judge}"


Benchmark = Annotated[HarnessBenchmark | JudgedBenchmark, Field(discriminator="kind")]


class AnswerSettings(Settings):
    """How models answer the two-turn questions."""

    max_new_tokens: int = Field(default=1024, gt=0, description="longest answer")
    temperatures: dict[str, float] = Field(
        default={}, description="temperature by category; 0 (greedy) where not named"
    )
    choices: int = Field(default=1, gt=0, description="answers to each question, each with noise of its own")
    batch_size: int = Field(default=16, gt=0, description="questions answered at a time")
    server: str | None = Field(
        default=None,
        description="command that serves a model folder by the OpenAI protocol, such as "
        "`vllm serve {model} --port {port}`; null: transformers answers",
    )


class JudgeRules(Settings):
    """Who judges, and what it is asked: all that shapes a score."""

    kind: Literal["openai", "rubric"] = Field(description="openai: an OpenAI-compatible endpoint; rubric: the demo's")
    model: str | None = Field(default=None, description="kind openai: model to ask for; a dated snapshot")
    temperature: float = Field(default=0.0, ge=0, description="temperature")
    max_tokens: int = Field(default=2048, gt=0, description="longest response")
    body: dict[str, JsonValue] = Field(
        default={}, description="more of the request's body, such as {max_completion_tokens: 2048}"
    )
    leave_out: tuple[Literal["n", "temperature", "max_tokens"], ...] = Field(
        default=(), description="what the endpoint does not take, such as [temperature, max_tokens]"
    )
    repeats: int = Field(default=1, gt=0, description="judgments of each answer")
    reasks: int = Field(default=1, ge=0, description="how often a response without a usable rating is asked for again")
    max_unjudged: float = Field(default=0.05, ge=0, le=1, description="largest share of unjudged answers with a score")


class EndpointSettings(Settings):
    """How a judge's endpoint is reached and what it may cost: no part of what identifies a score."""

    base_url: str | None = Field(
        default=None, pattern=r"^https?://\S+$", description="address, such as http://node:8000/v1; null: OpenAI's"
    )
    key: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="environment variable that holds the key; null: OPENAI_API_KEY for OpenAI's address, else no key",
    )
    concurrency: int = Field(default=16, gt=0, description="requests at a time")
    timeout: float = Field(default=180, gt=0, description="seconds after which a request is given up")
    attempts: int = Field(default=10, gt=0, description="attempts at one request that meets 429, 5xx or a dead line")
    price_in: float = Field(default=0.0, ge=0, description="USD for a million tokens of requests")
    price_out: float = Field(default=0.0, ge=0, description="USD for a million tokens of responses")
    max_cost: float | None = Field(
        default=None, gt=0, description="budget in USD of all that this judge does in one results tree; null: none"
    )
    max_tokens: int | None = Field(default=None, gt=0, description="budget in tokens, in and out; null: none")

    @property
    def variable(self) -> str | None:
        """The environment variable that holds the key; None: no key is sent."""
        return self.key or (None if self.base_url else "OPENAI_API_KEY")


class Judge(JudgeRules):
    """A judge."""

    endpoint: EndpointSettings = Field(default=EndpointSettings(), description="kind openai: where, and for how much")
