"""What estimates assume of machines, models and data until it is measured: typed parts of the config.

None of it reaches a recipe: changing an assumption changes plans and time limits, never a result. Units are in the
names or the descriptions.
"""

from __future__ import annotations

from pydantic import Field

from trialign.settings import Settings


class Shape(Settings):
    """The sizes of a decoder-only transformer that its parameters, FLOPs and memory follow from."""

    layers: int = Field(gt=0, description="number of layers")
    hidden_size: int = Field(gt=0, description="width of the residual stream")
    intermediate_size: int = Field(gt=0, description="width of the feed-forward layers")
    heads: int = Field(gt=0, description="attention heads")
    kv_heads: int = Field(gt=0, description="key and value heads")
    head_dim: int | None = Field(default=None, gt=0, description="width of a head; null: hidden_size / heads")
    vocab_size: int = Field(gt=0, description="rows of the embedding")
    gated: bool = Field(default=True, description="three feed-forward matrices (SwiGLU) instead of two")
    tied: bool = Field(default=False, description="the output layer is the embedding")

    @property
    def attention_width(self) -> int:
        """Heads times their width."""
        return self.heads * (self.head_dim or self.hidden_size // self.heads)

    @property
    def kv_width(self) -> int:
        """Key and value heads times their width."""
        return self.attention_width * self.kv_heads // self.heads

    @property
    def matrix_parameters(self) -> int:
        """Parameters that multiply every token: projections, feed-forward layers, output layer."""
        attention = 2 * self.hidden_size * (self.attention_width + self.kv_width)
        feed_forward = (3 if self.gated else 2) * self.hidden_size * self.intermediate_size
        return self.layers * (attention + feed_forward) + self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """All parameters but biases and norms, which are less than a thousandth of a model of 1B and more."""
        return self.matrix_parameters + (0 if self.tied else self.vocab_size * self.hidden_size)


class Efficiency(Settings):
    """Which share of the hardware's peak is reached, until runs of the same kind and model have been measured."""

    train: float = Field(default=0.35, gt=0, le=1, description="share of the peak FLOP/s in training (MFU)")
    forward: float = Field(default=0.35, gt=0, le=1, description="share of the peak FLOP/s when scoring")
    decode: float = Field(default=0.3, gt=0, le=1, description="share of the memory bandwidth when generating")


class Hardware(Settings):
    """The machine that jobs run on, as its data sheet has it. Jobs without GPUs count by CPU cores."""

    gpu: str = Field(default="", description="name of the GPU; empty: none")
    tflops: float = Field(default=0.0, ge=0, description="peak bf16 TFLOP/s of a GPU, dense")
    tflops_fp32: float = Field(default=0.0, ge=0, description="peak fp32 TFLOP/s of a GPU, without TF32")
    memory_gb: float = Field(default=0.0, ge=0, description="memory of a GPU")
    bandwidth_gb_s: float = Field(default=0.0, ge=0, description="memory bandwidth of a GPU")
    core_gflops: float = Field(default=50.0, gt=0, description="peak fp32 GFLOP/s of a CPU core")
    core_bandwidth_gb_s: float = Field(default=8.0, gt=0, description="memory bandwidth that a CPU core gets")
    download_mb_s: float = Field(default=50.0, gt=0, description="download speed")
    read_mb_s: float = Field(default=500.0, gt=0, description="speed at which a model is read from disk and written")
    start_seconds: float = Field(default=60.0, ge=0, description="time until a job that loads a model begins to work")
    hourly_rate: float = Field(default=0.0, ge=0, description="price of a GPU-hour in USD")
    efficiency: Efficiency = Field(default=Efficiency(), description="shares of the peak that are reached")


class ExpectedData(Settings):
    """A prepared data set before it is there."""

    train_rows: int | None = Field(default=None, gt=0, description="rows to train on; null: as `data` says")
    eval_rows: int | None = Field(default=None, gt=0, description="rows held out; null: as `data` says")
    length: float | None = Field(
        default=None,
        gt=0,
        description="mean tokens of a conversation, or of prompt + response; null: half of max_length",
    )


class ExpectedBenchmark(Settings):
    """A harness benchmark before it is there."""

    items: int = Field(default=1000, gt=0, description="scored items")
    requests: float = Field(default=4, gt=0, description="sequences scored for an item: its choices")
    length: float = Field(default=200, gt=0, description="mean tokens of a sequence, shots included")


class ExpectedAnswers(Settings):
    """Answers to the judged questions before they are there."""

    questions: int = Field(default=80, gt=0, description="two-turn questions")
    prompt: float = Field(default=300, gt=0, description="mean tokens before an answer")
    answer: float = Field(default=300, gt=0, description="mean tokens of an answer")
    longest: float = Field(default=800, gt=0, description="tokens of the longest answer of a batch")


class ExpectedJudge(Settings):
    """What a judgment by a model behind an endpoint takes."""

    tokens_in: float = Field(default=1100, gt=0, description="mean tokens of a request")
    tokens_out: float = Field(default=200, gt=0, description="mean tokens of a response")
    seconds: float = Field(default=0.5, gt=0, description="time of one request, with others beside it")


class Expectations(Settings):
    """What estimates assume of data until cards and records in the results tree say more."""

    data: dict[str, ExpectedData] = Field(default={}, description="by name under `data`")
    benchmarks: dict[str, ExpectedBenchmark] = Field(default={}, description="by name under `benchmarks`")
    sources_mb: dict[str, int] = Field(default={}, description="size of downloads by name under `sources`, in MB")
    answers: ExpectedAnswers = Field(default=ExpectedAnswers(), description="answers to the judged questions")
    judge: ExpectedJudge = Field(default=ExpectedJudge(), description="judgments")
