"""Train one stage with the packed engine: each prompt computed once, nothing padded, no logits held.

`PackedTrainer` is transformers' Trainer with another step: a global batch of examples becomes rows of at most
`micro_batch_tokens` tokens (`rows`), each goes once through the model (`attention`) to log-probabilities and the
method's loss (`logps`, `methods`), normalised over the global batch. Everything else (schedule, optimiser, logs,
checkpoints, FSDP2) is the Trainer's. Every process draws the same global batches and takes its own rows of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from trialign import methods
from trialign.errors import UserError
from trialign.methods import Branches, Norm, Terms
from trialign.recipes import TrainRecipe
from trialign.steps import Step
from trialign.training import attention, logps
from trialign.training.callbacks import CheckpointClock, StopDiverged
from trialign.training.common import Made, fields_of, load_parent, with_whole_checkpoints
from trialign.training.examples import Examples
from trialign.training.reference import MISMATCHED, Reference, load
from trialign.training.rows import Example, Row, make_row, plan


def make(step: Step[TrainRecipe], at_most: int | None) -> Made:
    """Return the step's trainer. at_most: tokens of a row. UserError: see `attention.prepare` and `Examples`."""
    recipe, processes = step.recipe, step.processes * step.nodes
    if methods.get(recipe.method).loss is None:
        raise UserError(f"method {recipe.method} has no loss for the packed engine: set training.engine: trl")
    packings = {"train": recipe.training.packing, "eval": None}
    data = {
        split: Examples(step.input("tokens") / f"{split}.parquet", recipe.view, packing, recipe.seed)
        for split, packing in packings.items()
    }
    budget = min(recipe.training.micro_batch_tokens, at_most or recipe.training.micro_batch_tokens)
    stored = step.inputs.get("reference")
    reference = {split: load(stored[0], split) if stored else {} for split in data}
    trainer = build_trainer(recipe, step.input("parent"), data, reference, step.scratch, budget, processes)
    return Made(
        trainer=trainer,
        split={"processes": processes, "micro_batch_tokens": budget},
        at_a_time=(budget, "tokens"),
        shrinks=budget > max(each.tokens_of_longest() for each in data.values()),
        rows={name: len(each) for name, each in data.items()},
        left_out=0,
        tokens=data["train"].tokens(),
        reference="log-probabilities of the parent, computed once" if stored else None,
    )


def build_trainer(
    recipe: TrainRecipe, parent: Path, data: Mapping[str, Examples], reference: Mapping[str, Reference], scratch: Path,
    budget: int, processes: int = 1,
) -> PackedTrainer:  # fmt: skip
    """Return the trainer of a recipe, whose checkpoints go to `scratch`."""
    model, tokenizer = load_parent(parent, recipe.training.dropout)
    # what a process draws is the global batch, of which it computes its rows: the Trainer is told of one batch a step
    fields = fields_of(
        recipe, TrainingArguments, micro_batch=recipe.training.batch, accumulation=1, processes=processes
    )
    trainer = with_whole_checkpoints(PackedTrainer, scratch)(
        recipe, model, data, reference, budget,
        args=TrainingArguments(**fields, output_dir=str(scratch / "writing")),
        processing_class=tokenizer,
        callbacks=[StopDiverged(), CheckpointClock()],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


class PackedTrainer(Trainer):
    """transformers' Trainer over packed rows.

    data, reference: of "train" and "eval"; reference: see that module, empty where the method needs none. tokens: of a
    row, at most.
    """

    def __init__(
        self, recipe: TrainRecipe, model: PreTrainedModel, data: Mapping[str, Examples],
        reference: Mapping[str, Reference], tokens: int, **arguments: Any,
    ) -> None:  # fmt: skip
        self.recipe, self.data, self.reference, self.budget = recipe, data, reference, tokens
        self.method = methods.get(recipe.method)
        self.params = self.method.parse(recipe.params)
        attention.prepare(model, max(each.longest(mismatched=self.method.reads_mismatched) for each in data.values()))
        self.order = logps.attach(model)
        self.measured: list[torch.Tensor] = []
        super().__init__(model=model, train_dataset=data["train"], eval_dataset=data["eval"], **arguments)

    # --- batches ------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return global batches, the same for each process, in an order drawn from the seed and the epoch."""
        batches = _Batches(
            self.data["train"],
            batch_size=self.recipe.training.batch,
            sampler=SeedableRandomSampler(self.data["train"], data_seed=self.recipe.seed),
            collate_fn=list,
        )
        # in the epoch that a run is resumed in, the Trainer has a loader of its own over this batch sampler
        batches.batch_sampler.set_epoch = batches.sampler.set_epoch
        return batches

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: the Trainer's count is of padded batches."""
        return 0

    # --- a step -------------------------------------------------------------------------------------------------------

    def training_step(
        self, model: torch.nn.Module, inputs: list[Example], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Compute the gradient of one global batch. Returns its loss."""
        model.train()
        norm = self._norm(model, "train", inputs)
        found = torch.zeros((), device=self.args.device)
        for row, weight in self._rows(inputs):
            with self.compute_loss_context_manager():
                loss = self.order(model, logps.Order(row, self._loss_of("train", row, norm, weight)))
            self.accelerator.backward(loss * self.accelerator.num_processes)  # gradients are averaged over processes
            found += loss.detach()
        return self._sum(found)

    def _rows(self, batch: Sequence[Example]) -> Iterator[tuple[Row, float]]:
        """Yield this process's rows of a batch, and their weight: 0 for one that only keeps the others company."""
        lengths = [example.tokens for example in batch]
        mine = plan(lengths, self.budget, self.accelerator.num_processes)[self.accelerator.process_index]
        for members in mine:
            examples = [batch[index] for index in members] or [batch[0]]
            yield make_row(examples, prompts=self.method.reads_prompt).to(self.args.device), float(bool(members))

    def _loss_of(self, split: str, row: Row, norm: Norm, weight: float) -> logps.LossOf:
        """Return the method's loss as a function of log-probabilities of some of a row's examples."""
        names = (("prompt",) if self.method.reads_prompt else ()) + self.data[split].branches
        ends = [0, *row.lengths.sum(dim=1).cumsum(0).tolist()]
        owners = torch.arange(row.lengths.numel()).repeat_interleave(row.lengths.flatten()).to(self.args.device)
        lengths = row.lengths.to(self.args.device)
        reference = self._reference(split, row)

        def loss_of(found: torch.Tensor, first: int, number: int) -> torch.Tensor:
            some = slice(first, first + number)
            own = owners[ends[first] : ends[first + number]] - first * len(names)
            sums = torch.zeros(number * len(names), device=found.device).index_add(0, own, found).view(number, -1)
            branches = Branches(
                dict(zip(names, sums.unbind(1), strict=True)),
                dict(zip(names, lengths[some].unbind(1), strict=True)),
                {name: values[some] for name, values in reference.items()},
            )
            terms = self.method.loss(branches, self.params, norm)
            self._measure(branches, terms, norm, weight)
            return terms.loss * weight

        return loss_of

    def _reference(self, split: str, row: Row) -> dict[str, torch.Tensor]:
        places = list(row.indices)
        return {
            name: torch.tensor(values[places], dtype=torch.float32, device=self.args.device)
            for name, values in self.reference[split].items()
        }

    def _norm(self, model: torch.nn.Module, split: str, batch: Sequence[Example]) -> Norm:
        """Return what the losses of a global batch are divided by; for KTO its z, by a pass without gradient."""
        counts = {
            name: sum(example.predicted(place) for example in batch)
            for place, name in enumerate(self.data[split].branches)
        }
        counts["prompt"] = sum(len(example.prompt) - 1 for example in batch)
        norm = Norm(len(batch), counts)
        if self.method.reads_mismatched:
            norm = dataclasses.replace(norm, kl=self._kl(model, split, batch))
        return norm

    def _kl(self, model: torch.nn.Module, split: str, batch: Sequence[Example]) -> float:
        """Return max(0, mean of log pi(y'|x) - log ref(y'|x)) over responses y' to other prompts (KTO, Eq. 7)."""
        data = self.data[split]
        total = torch.zeros((), dtype=torch.float64, device=self.args.device)
        for row, weight in self._rows([data.mismatched(example) for example in batch]):
            order = logps.Order(row, None)
            with torch.no_grad(), self.compute_loss_context_manager():
                self.order(model, order)
            reference = self._reference(split, row)
            stored = sum(reference[f"{MISMATCHED}{branch}"].sum() for branch in data.branches)
            total += weight * (order.logps.double().sum() - stored)
        return max(0.0, self._sum(total).item() / (len(batch) * len(data.branches)))

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum over all processes."""
        if self.accelerator.num_processes > 1:
            dist.all_reduce(value)
        return value

    # --- what is logged -----------------------------------------------------------------------------------------------

    def _measure(self, branches: Branches, terms: Terms, norm: Norm, weight: float) -> None:
        """Keep a batch's means of the responses' log-probabilities, margins and of how often the chosen one leads."""
        values = [sums.detach().sum() for name, sums in branches.sums.items() if name != "prompt"]
        if terms.margins is not None:
            values += [terms.margins.detach().sum(), (terms.margins.detach() > 0).float().sum()]
        self.measured.append(torch.stack(values) * weight / norm.prompts)

    def _means(self, prefix: str = "") -> dict[str, float]:
        """Return what was kept since the last call, under its names."""
        if not self.measured:
            return {}
        values = self._sum(torch.stack(self.measured).sum(dim=0)).tolist()
        self.measured = []
        names = [f"logps/{name}" for name in self.data["train"].branches]
        names += ["margins", "accuracies"] if len(values) > len(names) else []
        return {f"{prefix}{name}": value for name, value in zip(names, values, strict=True)}

    def log(self, logs: dict[str, float], *arguments: Any, **keywords: Any) -> None:
        """Log with the means of the last batch."""
        super().log(logs | (self._means() if "loss" in logs else {}), *arguments, **keywords)

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return the loss of the evaluation rows: of batches of the training's size, averaged over prompts."""
        split, size = self.data["eval"], self.recipe.training.batch
        self.model_wrapped.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.args.device)
        means: dict[str, float] = {}
        for start in range(0, len(split), size):
            batch = [split[index] for index in range(start, min(start + size, len(split)))]
            share = len(batch) / len(split)
            total += share * self._batch_loss(batch)
            for name, value in self._means("eval_").items():
                means[name] = means.get(name, 0.0) + share * value
        found = {"eval_loss": total.item()} | means
        self.log(found)
        return found

    def _batch_loss(self, batch: Sequence[Example]) -> torch.Tensor:
        norm = self._norm(self.model_wrapped, "eval", batch)
        found = torch.zeros((), device=self.args.device)
        for row, weight in self._rows(batch):
            order = logps.Order(row, None)
            with torch.no_grad(), self.compute_loss_context_manager():
                self.order(self.model_wrapped, order)
                found += self._loss_of("eval", row, norm, weight)(order.logps, 0, len(row.lengths))
        return self._sum(found)


class _Batches(DataLoader[Any]):
    """Batches whose sampler is told the epoch, as accelerate's are."""

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler which epoch comes."""
        self.sampler.set_epoch(epoch)
