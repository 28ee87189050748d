"""The model as lm-eval sees it: HFLM with our rule for BOS, and a count of what did not fit the model's context."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import lm_eval.utils
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing

from trialign.errors import UserError
from trialign.evaluation.models import load


class LanguageModel(HFLM):
    """A model folder as a harness model.

    truncated: the (context, continuation) requests that were longer than the model's context, which the harness cuts
    from the left with no more than a line in the log.
    """

    def __init__(self, folder: Path, *, batch_size: int, bos: bool) -> None:
        """Load `folder`. `bos`: exactly one BOS before each request, or none, whatever the tokenizer would do.

        Raises UserError if a BOS is asked for and the tokenizer has none.
        """
        model, tokenizer = load(folder)
        if bos:
            _prepend_bos(tokenizer, folder)
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, add_bos_token=bos)
        self.truncated: set[tuple[str, str]] = set()
        # `truncated` says it once, where HFLM writes a warning for every request
        logging.getLogger(HFLM.__module__).setLevel(logging.ERROR)
        # lm-eval encodes a context anew for each of its choices, which follow one another
        self.tok_encode = functools.lru_cache(maxsize=8)(self.tok_encode)

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        """Count what is cut, and score. UserError for a continuation that alone is longer than the context."""
        for strings, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise UserError(
                    f"a choice of {len(continuation)} tokens is longer than the model's context of {self.max_length}: "
                    f"'{strings[1][:60].strip()} ...'; leave this benchmark out for this model"
                )
            # the last token is only predicted, so one more than the context fits: as HFLM counts
            if len(context) + len(continuation) > self.max_length + 1:
                self.truncated.add(strings)
        return super()._loglikelihood_tokens(requests, **kwargs)


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
