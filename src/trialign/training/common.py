"""What both engines share: the parent's model, every field of the trainer's config, whole checkpoints."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)
from transformers.utils import is_flash_attn_2_available

from trialign.recipes import TrainRecipe
from trialign.settings import Training
from trialign.training import distributed
from trialign.training.callbacks import publish_checkpoint

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


class Made(NamedTuple):
    """A trainer that is ready, and what its run's record says of it.

    split: how a global batch is computed. at_a_time: how many of which unit one device computes at a time, and shrinks:
    whether fewer leave the loss as it is. rows: of each split of the data. left_out: rows that no batch has. tokens:
    that the policy reads in an epoch. reference: where the parent's log-probabilities come from, None for a method
    without.
    """

    trainer: Trainer
    split: dict[str, int]
    at_a_time: tuple[int, str]
    shrinks: bool
    rows: dict[str, int]
    left_out: int
    tokens: int
    reference: str | None


def load_parent(parent: Path, dropout: float) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the parent in fp32, every dropout of its config set to `dropout`, and its tokenizer with a pad token."""
    config = AutoConfig.from_pretrained(parent, trust_remote_code=False)
    for key, value in config.to_dict().items():
        if key.endswith(("dropout", "pdrop")) and isinstance(value, int | float):
            setattr(config, key, dropout)
    model = AutoModelForCausalLM.from_pretrained(
        parent,
        config=config,
        dtype=torch.float32,
        attn_implementation=_attention(),
        trust_remote_code=False,
        use_safetensors=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(parent, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _attention() -> str:
    """Return the attention to train with: flash attention where it is installed and there is a GPU for it."""
    return "flash_attention_2" if torch.cuda.is_available() and is_flash_attn_2_available() else "sdpa"


def _sharded(training: Training) -> dict[str, Any]:
    """Return the fields that shard weights, gradients and optimiser over the processes (FSDP2, by accelerate)."""
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "state_dict_type": "FULL_STATE_DICT",
            "activation_checkpointing": training.gradient_checkpointing,
        },
        "activation_checkpointing": False,  # FSDP's own, which gathers the weights once less
        "ddp_backend": None if torch.cuda.is_available() else "gloo",
    }


def fields_of(
    recipe: TrainRecipe, config: type, *, micro_batch: int, accumulation: int, processes: int
) -> dict[str, Any]:
    """Return the config's fields that do not belong to the method's loss, those that `config` has."""
    training = recipe.training
    fields = {
        # Batches: prompts; on one device one micro-batch each, the last of an epoch as small as it comes.
        "per_device_train_batch_size": micro_batch,
        "per_device_eval_batch_size": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "average_tokens_across_devices": True,
        "num_train_epochs": training.epochs,
        "max_steps": training.max_steps or -1,
        "dataloader_drop_last": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "train_sampling_strategy": "sequential",
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "full_determinism": False,
        # Optimiser.
        "optim": "adamw_torch_fused",
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": _SCHEDULES[training.schedule],
        "lr_scheduler_kwargs": None,
        "warmup_steps": training.warmup,
        "weight_decay": training.weight_decay,
        "adam_beta1": training.adam_beta1,
        "adam_beta2": training.adam_beta2,
        "adam_epsilon": training.adam_epsilon,
        "max_grad_norm": training.max_grad_norm,
        "neftune_noise_alpha": None,
        # Precision: the weights are fp32; bf16 is autocast.
        "bf16": training.precision == "bf16",
        "fp16": False,
        "tf32": None,
        "use_cpu": not torch.cuda.is_available(),
        "torch_compile": False,
        "use_liger_kernel": False,
        "activation_checkpointing": training.gradient_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "activation_offloading": False,
        "disable_dropout": training.dropout == 0,
        # Data: token ids as they are.
        "remove_unused_columns": False,
        "trust_remote_code": False,
        "model_init_kwargs": None,
        "dataset_num_proc": None,
        # Log every step; evaluate once, at the end; checkpoints come from the clock.
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": "none",
        "eval_strategy": "no",
        "prediction_loss_only": True,
        "save_strategy": "no",
        "save_only_model": False,
        "push_to_hub": False,
        **(_sharded(training) if processes > 1 else {}),
    }
    known = {field.name for field in dataclasses.fields(config)}
    return {name: value for name, value in fields.items() if name in known}


def with_whole_checkpoints(stock: type[Trainer], scratch: Path) -> type[Trainer]:
    """Return `stock` without model cards, and with whole checkpoints in `scratch`."""
    if distributed.is_first():
        shutil.rmtree(scratch / "writing", ignore_errors=True)

    class Whole(stock):
        def create_model_card(self, *args: Any, **kwargs: Any) -> None: ...

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if distributed.is_first():
                publish_checkpoint(scratch / "writing" / f"checkpoint-{self.state.global_step}", scratch)
            self.accelerator.wait_for_everyone()

    return Whole
