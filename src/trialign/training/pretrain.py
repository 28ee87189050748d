"""Pre-train a tiny base model on the texts of the demo world, in plain PyTorch.

Texts are joined with the end token and cut into blocks of one length; each epoch reads all blocks in an order of its
own, a function of the seed and the epoch. Nothing else is random after the weights are drawn, so a run that is
killed and resumed ends with the same weights, bit for bit.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM, PhiConfig, PhiForCausalLM, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from trialign.errors import UserError
from trialign.recipes import PretrainRecipe
from trialign.settings import PretrainSettings
from trialign.steps import Step

LAST_RATE = 0.1


def pretrain(step: Step[PretrainRecipe]) -> dict[str, Any]:
    """Train on input `corpus` (folder with train.jsonl of `text`) with input `tokenizer`.

    Writes `model/` (weights, config, tokenizer) and `log.jsonl` (step, loss in nats per token, lr, tokens so far);
    returns the number of parameters, tokens and the last loss. Raises UserError where the corpus fills no batch.
    """
    settings, seed = step.recipe.settings, step.recipe.seed
    torch.use_deterministic_algorithms(True)
    tokenizer = AutoTokenizer.from_pretrained(step.input("tokenizer"))
    blocks = _blocks(step.input("corpus") / "train.jsonl", tokenizer, settings.block)
    if len(blocks) < settings.batch:
        raise UserError(
            f"{step.input('corpus')}: the texts fill {len(blocks)} blocks of {settings.block} tokens, fewer than one "
            f"batch of {settings.batch}: write more documents or lower `batch`"
        )
    torch.manual_seed(seed)
    model = _model(settings, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    checkpoint = step.scratch / "checkpoint.pt"
    log: list[dict[str, float]] = []
    progress = step.progress
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        log = saved["log"]
    model.train()
    for number in range(len(log), settings.steps):
        rate = settings.learning_rate * _schedule(number, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = blocks[_batch(number, len(blocks), settings.batch, seed)]
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        log.append({"step": number + 1, "loss": loss.item(), "lr": rate, "tokens": (number + 1) * batch.numel()})
        progress.tell(number + 1, settings.steps, "steps", loss=log[-1]["loss"])
        if (number + 1) % settings.checkpoint_every == 0:
            _save(checkpoint, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "log": log})
    model.save_pretrained(step.out / "model")
    tokenizer.save_pretrained(step.out / "model")
    with (step.out / "log.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in log)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "corpus_tokens": blocks.numel(),
        "tokens": log[-1]["tokens"],
        "loss": log[-1]["loss"],
    }


def _model(settings: PretrainSettings, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return the model with fresh weights, in fp32, without dropout."""
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": settings.hidden_size,
        "intermediate_size": settings.intermediate_size,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "num_key_value_heads": settings.kv_heads,
        "max_position_embeddings": settings.positions,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.08,  # so narrow a model learns later with the classes' own 0.02
    }
    if settings.architecture == "phi":
        # half of a head's dimensions are left unrotated for what a word is; short contexts let the others turn fast
        rope = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}
        return PhiForCausalLM(PhiConfig(**sizes, rope_parameters=rope))
    # all dimensions of a head rotate here, so it needs twice as many: else copying from the context is learned late
    head_dim = 2 * settings.hidden_size // settings.heads
    return MistralForCausalLM(MistralConfig(**sizes, head_dim=head_dim, sliding_window=None))


def _blocks(path: Path, tokenizer: PreTrainedTokenizerBase, length: int) -> torch.Tensor:
    """Return the texts as int64 blocks, shape (blocks, length); what does not fill the last block is left out."""
    with path.open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    flat = torch.tensor([token for ids in encoded for token in (*ids, tokenizer.eos_token_id)])
    count = len(flat) // length
    return flat[: count * length].view(count, length)


def _batch(number: int, blocks: int, size: int, seed: int) -> torch.Tensor:
    """Return the indices of the blocks of step `number`; an incomplete batch at the end of an epoch is left out."""
    epoch, at = divmod(number, blocks // size)
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return order[at * size : (at + 1) * size]


def _schedule(number: int, settings: PretrainSettings) -> float:
    """Return the factor of the peak learning rate at step `number`: linear warm-up, cosine down to `LAST_RATE`."""
    warmup = int(settings.warmup * settings.steps)
    if number < warmup:
        return (number + 1) / warmup
    progress = (number - warmup) / max(1, settings.steps - warmup)
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


def _save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole: to a name of its own first, then renamed."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)
