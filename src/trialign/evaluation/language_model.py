"""The model as lm-eval sees it: HFLM with our rule for BOS, a count of what does not fit, and a journal of batches."""

from __future__ import annotations

import functools
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval.utils
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing
from tqdm import tqdm

from trialign.deadline import Deadline
from trialign.errors import UserError
from trialign.evaluation.journal import Journal
from trialign.evaluation.models import load
from trialign.progress import Progress
from trialign.steps import digest

JOURNAL = "loglikelihoods.jsonl"


class LanguageModel(HFLM):
    """A model folder as a harness model. What it computed is written down batch by batch, and not computed again.

    A request's last bits depend on the batch that it is computed in, so a restart must find HFLM's batches whole.
    lm-eval's own cache (`use_cache`) does not: it takes out single requests, and what is left may make other batches.

    truncated: the (context, continuation) requests that were longer than the model's context, which the harness cuts
    from the left with no more than a line in the log.
    """

    def __init__(self, folder: Path, *, batch_size: int, bos: bool, scratch: Path) -> None:
        """Load `folder`. `bos`: exactly one BOS before each request, or none, whatever the tokenizer would do.

        scratch: the folder of the journal. Raises UserError if a BOS is asked for and the tokenizer has none.
        """
        self._deadline, self._progress = Deadline(), Progress(scratch.parent)
        model, tokenizer = load(folder)
        if bos:
            _prepend_bos(tokenizer, folder)
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, add_bos_token=bos)
        self.truncated: set[tuple[str, str]] = set()
        self._journal = Journal(scratch / JOURNAL)
        self._kept = {record["batch"]: record["answers"] for record in self._journal.records}
        # results.json names these of all values: those that others computed are not taken
        self._made = [self.device.type, *map(version, ("torch", "transformers", "lm-eval"))]
        # `truncated` says it once, where HFLM writes a warning for every request
        logging.getLogger(HFLM.__module__).setLevel(logging.ERROR)
        # lm-eval encodes a context anew for each of its choices, which follow one another
        self.tok_encode = functools.lru_cache(maxsize=8)(self.tok_encode)

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        """Count what is cut, and score the batches that are not in the journal.

        UserError for a continuation that alone is longer than the context; Again where the time of the job is up.
        """
        for strings, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise UserError(
                    f"a choice of {len(continuation)} tokens is longer than the model's context of {self.max_length}: "
                    f"'{strings[1][:60].strip()} ...'; leave this benchmark out for this model"
                )
            # the last token is only predicted, so one more than the context fits: as HFLM counts
            if len(context) + len(continuation) > self.max_length + 1:
                self.truncated.add(strings)
        parts = batches(requests, self.batch_size)
        keys = [self._key(requests[i] for i in part) for part in parts]
        left = [(key, part) for key, part in zip(keys, parts, strict=True) if key not in self._kept]
        units, done = self._deadline.each(left, "batches"), len(requests) - sum(len(part) for _, part in left)
        for key, part in tqdm(units, "Running batches", len(parts), initial=len(parts) - len(left)):
            answers = super()._loglikelihood_tokens([requests[i] for i in part], disable_tqdm=True)
            self._journal.append([{"batch": key, "answers": answers}])
            self._kept[key] = answers
            done += len(part)
            self._progress.tell(done, len(requests), "requests")
        found = {
            i: tuple(answer)
            for key, part in zip(keys, parts, strict=True)
            for i, answer in zip(part, self._kept[key], strict=True)
        }
        return [found[i] for i in range(len(requests))]

    def _key(self, batch: Iterable[Any]) -> str:
        """Return what identifies a batch's answers: its token ids in their order, and what computed them."""
        return digest([self._made, [(context, continuation) for _, context, continuation in batch]])


def batches(requests: Sequence[Any], size: int) -> list[list[int]]:
    """Return the indices of the (strings, context, continuation) that HFLM computes together, batch by batch.

    HFLM reads once what differs in the last token alone; of what it reads it takes `size` at a time, longest first
    (lm-eval 0.4.13, `HFLM._loglikelihood_tokens`, `Collator`). The requests of one batch alone make that batch again.
    """
    read: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, (_, context, continuation) in enumerate(requests):
        read[tuple(context + continuation[:-1])].append(i)
    ordered = sorted(read, key=lambda ids: (-len(ids), ids))
    return [[i for ids in ordered[at : at + size] for i in read[ids]] for at in range(0, len(ordered), size)]


def _prepend_bos(tokenizer: Any, folder: Path) -> None:
    if tokenizer.bos_token is None:
        raise UserError(f"{folder}: bos is true, but this tokenizer has no BOS token; set bos to false for this model")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)]
    )


def compile_templates_once() -> None:
    """Let the harness compile each Jinja template once.

    lm-eval 0.4.13 (`utils.apply_template`) compiles the template again for every document and field: 15,000 times and
    half of the whole time for 1,800 items of nine tasks.
    """
    environment = lm_eval.utils.env
    if not hasattr(environment.from_string, "cache_info"):
        environment.from_string = functools.cache(environment.from_string)
