"""Answers to two-turn questions, in FastChat's format, with the model's own chat template.

A prompt has the token ids that training would have given it (`data.tokens.Encoder`). Questions are answered in batches
of similar length, padded on the left. A question's answer does not depend on the company it has in a batch: a
temperature is applied with noise of the question's own, and a question without room for the longest answer is answered
alone. (Floating-point sums differ by batch size, so the batch size is part of the recipe.) A server that the config
names answers the same token ids (`served.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, LogitsProcessor, LogitsProcessorList

from trialign import diverged, paths
from trialign.data.cards import quantiles, write_card
from trialign.data.tokens import Encoder
from trialign.deadline import Deadline
from trialign.evaluation.journal import Journal
from trialign.evaluation.models import fitting, load, load_tokenizer
from trialign.evaluation.questions import ANSWERS, TURNS, line, read_questions
from trialign.recipes import AnswerRecipe
from trialign.settings import AnswerSettings
from trialign.steps import Step


@dataclass(frozen=True)
class Prompt:
    """What a question asks of the model at one turn.

    choice: which of its answers this is to be. ids: the token ids. room: the most tokens that the answer may have; 0 or
    less where the prompt fills the model's context. seed: of the noise that a temperature above 0 needs.
    """

    question_id: int | str
    choice: int
    ids: list[int]
    room: int
    temperature: float
    seed: int


class Noise(LogitsProcessor):
    """Turns the greedy choice into a sample: argmax(scores / T + Gumbel noise) is distributed as softmax(scores / T).

    (Gumbel 1954; the "Gumbel-max trick".) Each row has a generator of its own, so that a sample depends on its question
    alone; rows of temperature 0 stay greedy. Nothing else (top-k, top-p) shapes the distribution.
    """

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        """One prompt for each row of the batch."""
        self._rows = [(prompt.temperature, torch.Generator().manual_seed(prompt.seed)) for prompt in prompts]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores [rows, vocabulary] of which the greedy choice is the sample."""
        rows = [
            row / temperature - torch.empty(row.shape).exponential_(generator=generator).log().to(row.device)
            if temperature
            else row
            for row, (temperature, generator) in zip(scores, self._rows, strict=True)
        ]
        return torch.stack(rows)


class Asker:
    """Makes prompts for a model: its chat template, its tokens, and the room that its context leaves."""

    def __init__(self, folder: Path, recipe: AnswerRecipe, tokenizer: Any, config: Any) -> None:
        """Take a model folder's tokenizer and config. UserError: no chat template, no EOS, or no BOS though asked for.

        stops: the ids that end an answer: the tokenizer's EOS and those that the folder names.
        """
        self._encoder, self._recipe = Encoder(tokenizer, bos=recipe.bos), recipe
        self._context: int = config.max_position_embeddings
        self.stops = _stops(folder, tokenizer)

    def prompt(self, question: Mapping[str, Any], answers: Sequence[str], choice: int = 0) -> Prompt:
        """Return the prompt of the turn that follows `answers` (none, or the first turn's) of a choice."""
        messages = []
        for request, said in zip(question["turns"], [*answers, ""], strict=False):
            messages += [{"role": "user", "content": request}, {"role": "assistant", "content": said}]
        *before, last = self._encoder.encode(self._encoder.turns(messages))
        ids = [token for turn in before for token in (*turn.context, *turn.answer)] + last.context
        settings = self._recipe.answers
        which = (choice,) if choice else ()
        return Prompt(
            question["question_id"],
            choice,
            ids,
            min(settings.max_new_tokens, self._context - len(ids)),
            settings.temperatures.get(question["category"], 0.0),
            _seed(self._recipe.seed, question["question_id"], len(answers), *which),
        )


class Writer:
    """A model that answers prompts, loaded by transformers."""

    def __init__(self, model: Any, tokenizer: Any, stops: list[int]) -> None:
        """stops: the ids that end an answer."""
        self._model, self._tokenizer, self._stops = model, tokenizer, stops
        pad = tokenizer.pad_token_id
        self._pad = min(stops) if pad is None else pad
        # in place of the folder's own: what shapes an answer is in the recipe
        model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=self._pad)

    def write(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """Answer a batch of prompts with equal room.

        Returns one record each: `text`, `tokens` (EOS included) and `end`: "eos"; "length" where the room was used up;
        "no_room" where there was none, with an empty text.
        """
        if prompts[0].room <= 0:
            return [record(prompt, "", 0, "no_room") for prompt in prompts]
        width = max(len(prompt.ids) for prompt in prompts)
        rows = [[self._pad] * (width - len(prompt.ids)) + prompt.ids for prompt in prompts]
        mask = [[0] * (width - len(prompt.ids)) + [1] * len(prompt.ids) for prompt in prompts]
        sampled = any(prompt.temperature for prompt in prompts)
        output = self._model.generate(
            torch.tensor(rows, device=self._model.device),
            attention_mask=torch.tensor(mask, device=self._model.device),
            max_new_tokens=prompts[0].room,
            do_sample=False,
            logits_processor=LogitsProcessorList([Noise(prompts)] if sampled else []),
        )
        return [self._record(prompt, row) for prompt, row in zip(prompts, output[:, width:].tolist(), strict=True)]

    def _record(self, prompt: Prompt, row: list[int]) -> dict[str, Any]:
        end = next((i for i, token in enumerate(row) if token in self._stops), None)
        ids = row if end is None else row[:end]
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return record(prompt, text, len(ids) + (end is not None), "length" if end is None else "eos")


def record(prompt: Prompt, text: str, tokens: int, end: str) -> dict[str, Any]:
    """Return what is written down of an answer; see `Writer.write`."""
    return {
        "question_id": prompt.question_id, "choice": prompt.choice, "text": text.strip(), "tokens": tokens, "end": end,
    }  # fmt: skip


def answer(step: Step[AnswerRecipe]) -> dict[str, Any]:
    """Answer the questions. Writes `answers.jsonl` (FastChat's answer format; see `_line`) and `card.json`.

    A restart goes on after the last batch that was written down. The model of a diverged run answers nothing: its mark
    is passed on. Facts: the card. Again where the time of its job is up; UserError where a batch does not fit the GPU,
    or the server does not serve.
    """
    folder, settings = step.input("model"), step.recipe.answers
    if mark := diverged.pass_on(folder, step.out):
        return mark
    questions = read_questions(step.input("questions"))
    if settings.server:
        from trialign.evaluation.served import serving

        asker = Asker(folder, step.recipe, load_tokenizer(folder), AutoConfig.from_pretrained(folder))
        with serving(settings.server, folder, step.scratch / "server.log") as server:
            write = partial(server.write, stops=asker.stops, at_a_time=settings.batch_size)
            records = _answer(step, questions, asker, one_by_one, write)
    else:
        model, tokenizer = load(folder)
        asker = Asker(folder, step.recipe, tokenizer, model.config)
        writer = Writer(model, tokenizer, asker.stops)
        records = _answer(step, questions, asker, partial(batches, settings=settings), partial(map, writer.write))
    name = model_id(folder)
    with (step.out / ANSWERS).open("w", encoding="utf-8") as file:
        for question in questions:
            key = question["question_id"]
            choices = [
                [(records[turn].get((key, choice)) or records[turn][key, 0])["text"] for turn in TURNS]
                for choice in range(settings.choices)
            ]
            file.write(line(_line(name, key, choices)))
    return write_card(step.out, _card(records))


Records = dict[tuple[Any, int], dict[str, Any]]  # by question and choice


Batches = list[list[Prompt]]
Written = Iterator[list[dict[str, Any]]]


def _answer(
    step: Step[AnswerRecipe],
    questions: Sequence[Mapping[str, Any]],
    asker: Asker,
    parted: Callable[[list[Prompt]], Batches],
    write: Callable[[Iterator[list[Prompt]]], Written],
) -> dict[int, Records]:
    """Return the records of both turns. A question answered greedily has one answer, whatever `choices` says.

    parted: puts prompts into batches, which are written, and written down, as one. write: writes them, one or several
    at a time.
    """
    settings, deadline, progress = step.recipe.answers, Deadline(), step.progress
    records: dict[int, Records] = {}
    for turn in TURNS:
        prompts = [
            asker.prompt(
                question, [records[before][question["question_id"], choice]["text"] for before in records], choice
            )
            for question in questions
            for choice in range(settings.choices if settings.temperatures.get(question["category"]) else 1)
        ]
        journal = Journal(step.scratch / f"turn{turn}.jsonl")
        done = {(record["question_id"], record["choice"]) for record in journal.records}
        left = [
            batch
            for batch in parted(prompts)
            if not done.issuperset((prompt.question_id, prompt.choice) for prompt in batch)
        ]
        with fitting("answers.batch_size", settings.batch_size):
            for written in write(deadline.each(left, f"batches of turn {turn}")):
                journal.append(written)
                # the second turn has as many as the first
                progress.tell(len(prompts) * len(records) + len(journal.records), len(prompts) * len(TURNS), "answers")
        records[turn] = {(record["question_id"], record["choice"]): record for record in journal.records}
    return records


def one_by_one(prompts: Iterable[Prompt]) -> Batches:
    """Return each prompt as a batch of its own, longest first."""
    return [[prompt] for prompt in sorted(prompts, key=lambda prompt: -len(prompt.ids))]


def batches(prompts: Iterable[Prompt], settings: AnswerSettings) -> Batches:
    """Return the prompts in batches, longest first: those with full room together, each other one alone."""
    ordered = sorted(prompts, key=lambda prompt: -len(prompt.ids))
    full = [prompt for prompt in ordered if prompt.room == settings.max_new_tokens]
    alone = [[prompt] for prompt in ordered if prompt.room != settings.max_new_tokens]
    return alone + [full[i : i + settings.batch_size] for i in range(0, len(full), settings.batch_size)]


def model_id(folder: Path) -> str:
    """Return what a model is called in answers: `<lineage>/seed<k>` of a run's model folder, else the folder's name."""
    try:
        run = paths.parse_suite(folder)
    except ValueError:
        return folder.name
    return f"{run.lineage}/seed{run.seed}"


def _stops(folder: Path, tokenizer: Any) -> list[int]:
    """Return the ids that end an answer: the tokenizer's EOS and those that the model's folder names."""
    file = folder / "generation_config.json"
    named = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
    return sorted({tokenizer.eos_token_id, *([] if named is None else named if isinstance(named, list) else [named])})


def _seed(*values: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr(values).encode()).digest()[:7], "big")


def _line(name: str, question_id: int | str, choices: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return a line of FastChat's answer files. `answer_id` is a hash and `tstamp` 0, so that reruns are equal."""
    digest = hashlib.sha256(repr((name, question_id, choices)).encode()).hexdigest()
    return {
        "question_id": question_id,
        "answer_id": digest[:22],
        "model_id": name,
        "choices": [{"index": index, "turns": texts} for index, texts in enumerate(choices)],
        "tstamp": 0.0,
    }


def _card(records: Mapping[int, Records]) -> dict[str, Any]:
    every = [record for turn in records.values() for record in turn.values()]
    return {
        "kind": "answers",
        "rows_in": len(every),
        "rows": {f"turn {turn}": len(answers) for turn, answers in records.items()},
        "dropped": {},
        "empty": sum(not record["text"] for record in every),
        "ends": dict(Counter(record["end"] for record in every)),
        "lengths": {"unit": "tokens", "answer": quantiles(record["tokens"] for record in every)},
    }
