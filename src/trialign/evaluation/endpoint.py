"""A judge behind an OpenAI-compatible endpoint: one request at a time, as often as it takes, never beyond the budget.

Each attempt claims its request in the shared file of responses (`responses.py`), so that what was answered once is
asked for no more, by any process. The client is openai's, its own retries off: it obeys `Retry-After` only up to a
minute, and knows no budget.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any

from tenacity import (
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    wait_random_exponential,
)

from trialign.errors import UserError
from trialign.evaluation import requests
from trialign.evaluation.responses import BYTES_OF_A_TOKEN, Limits, OverBudget, Responses, Stored, Tokens
from trialign.settings import EndpointSettings, JudgeRules

TEMPLATE_TOKENS = 256  # at most: what a server's chat template puts around messages
SLOWEST_WAIT = 60.0  # seconds between two attempts, where the endpoint names none
POLL_SECONDS = 0.05  # between looks at a request that another thread or process has under way
OPENAI = "https://api.openai.com/v1"  # said, for the client would follow OPENAI_BASE_URL
SPREAD_SECONDS = 0.5
_NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
_REFUSED = (400, 413, 422)  # the request itself: asking again gives the same
_BARRED = (401, 403, 404)  # all requests
_MAYBE_PAID = (502, 504)  # a gateway gave up on an answer that may have come


class Transient(Exception):
    """An attempt failed in a way that passes."""


class Endpoint:
    """One judge's endpoint; threads share it."""

    def __init__(self, judge: str, rules: JudgeRules, settings: EndpointSettings, stored: Responses) -> None:
        """Nothing is sent yet, and no key is needed for what is stored."""
        self._judge, self._rules, self._settings, self._stored = judge, rules, settings, stored
        self._limits = Limits.of(settings)
        self._ended = threading.Event()
        self._guard = threading.Lock()
        self._not_before = 0.0  # monotonic: the endpoint asked all to wait until then

    def end(self) -> None:
        """Let no attempt begin any more: what is under way still comes and is kept."""
        self._ended.set()

    def ask(self, body: Mapping[str, Any], number: tuple[int, ...]) -> Stored:
        """Return the raw response to a request, stored before anyone reads it.

        number: see `requests.number`. UserError: the budget, a missing or refused key, an endpoint that does not answer
        after `attempts`.
        """
        request = {"body": body, "number": number}
        retrying = Retrying(
            stop=stop_after_attempt(self._settings.attempts),
            wait=wait_random_exponential(multiplier=0.25, max=SLOWEST_WAIT),
            retry=retry_if_exception_type(Transient),
            sleep=sleep_using_event(self._ended),
            reraise=True,
        )
        try:
            return retrying(self._once, requests.key(self._judge, body, number), request)
        except Transient as error:
            raise UserError(
                f"judge {self._judge}: {self._where} failed {self._settings.attempts} times on one request, at last: "
                f"{error}; what was judged is kept: start again when it answers"
            ) from error
        except OverBudget:
            raise UserError(self._over_budget()) from None

    def most(self, body: Mapping[str, Any]) -> Tokens:
        """Return the most tokens that a request can take: a token is a byte at least."""
        return Tokens(
            requests.size(body) + TEMPLATE_TOKENS, body.get("max_completion_tokens") or body.get("max_tokens") or 0
        )

    def _once(self, key: str, request: Mapping[str, Any]) -> Stored:
        """Make one attempt: wait for the claim, send, keep what comes."""
        most = self.most(request["body"])
        while True:
            self._wait_as_asked()
            claim = self._stored.claim(key, self._judge, most, self._limits)
            if claim.stored:
                return claim.stored
            if not claim.granted:
                self._ended.wait(POLL_SECONDS)
                continue
            try:
                response = self._send(request["body"])
            except _Lost:
                self._stored.lose(key)
                raise
            except _Asked:  # no failure: it is waited for as long as the endpoint says
                self._stored.release(key)
            except _Refused as refusal:  # costs nothing, and may have a cause that goes: not for the next start
                self._stored.release(key)
                return refusal.response
            except BaseException:
                self._stored.release(key)
                raise
            else:
                self._stored.keep(key, self._judge, request, requests.size(request["body"]), response)
                return response

    def _wait_as_asked(self) -> None:
        """Wait until the endpoint takes requests again, and a little longer, so that not all come at once.

        UserError where no attempt is to begin any more.
        """
        while True:
            left = self._not_before - time.monotonic()
            if self._ended.wait(left + random.uniform(0, SPREAD_SECONDS) if left > 0 else 0):
                raise UserError(f"judge {self._judge}: ended before this request was sent")
            if self._not_before <= time.monotonic():
                return

    def _send(self, body: Mapping[str, Any]) -> Stored:
        """Send a request. Returns the response as it came.

        Transient: to be tried again; _Refused: the endpoint refuses this very request; UserError: no request of this
        judge would be answered.
        """
        from openai import APIConnectionError, APIStatusError

        try:
            text = self._client.chat.completions.with_raw_response.create(
                model=body["model"], messages=body["messages"], extra_body=dict(body)
            ).text
        except APIStatusError as error:
            raise self._failure(error) from None
        except APIConnectionError as error:
            never_sent = "Connect" in type(error.__cause__).__name__
            raise (Transient if never_sent else _Lost)(self._without_key(_reason(error))) from None
        usage = _usage(text, self.most(body))
        if usage is None:
            raise _Lost(f"what came is no chat completion: {self._without_key(text)[:200]!r}")
        return Stored(text, usage)

    def _failure(self, error: Any) -> Exception:
        status, text = error.status_code, self._without_key(_reason(error))
        if status in _BARRED or getattr(error, "code", None) in _NO_MONEY:
            key = self._settings.variable or "none"
            return UserError(
                f"judge {self._judge}: {self._where} refuses every request ({status}: {text}); check the model's name "
                f"({self._rules.model}), endpoint.base_url and the key (endpoint.key: {key}); what was judged is kept"
            )
        if status in _REFUSED:
            return _Refused(Stored(json.dumps({"error": text, "status": status}), Tokens()))
        after = _retry_after(error.response.headers)
        if after is None or status in _MAYBE_PAID:
            return (_Lost if status in _MAYBE_PAID else Transient)(f"{status}: {text}")
        with self._guard:
            later = time.monotonic() + after
            told, self._not_before = self._not_before, max(self._not_before, later)
        if later > told + 1:
            print(f"{status} from {self._where}: asks to wait {after:g} s", file=sys.stderr, flush=True)
        return _Asked()

    @property
    def _where(self) -> str:
        return self._settings.base_url or OPENAI

    @cached_property
    def _key(self) -> str:
        return api_key(self._judge, self._settings)

    @cached_property
    def _client(self) -> Any:
        from openai import OpenAI

        settings = self._settings
        return OpenAI(api_key=self._key or "none", base_url=self._where, timeout=settings.timeout, max_retries=0)

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text

    def _over_budget(self) -> str:
        spent, limits = self._stored.spent(self._judge), self._limits
        paid, lost = (part.cost(limits.price_in, limits.price_out) for part in (spent.paid, spent.lost))
        budget = " and ".join(
            f"endpoint.{name} = {value:g}"
            for name, value in (("max_cost", limits.max_cost), ("max_tokens", limits.max_tokens))
            if value is not None
        )
        return (
            f"judge {self._judge}: the next request could pass {budget}: {sum(spent.paid):,} tokens ({paid:.2f} USD) "
            f"are paid, and at most {sum(spent.lost):,} ({lost:.2f} USD) went with responses that broke off; what was "
            "judged is kept: raise the budget to go on"
        )


class _Lost(Transient):
    """An attempt that broke off and may have been paid."""


class _Asked(Exception):
    """The endpoint asks to wait."""


class _Refused(Exception):
    """The endpoint refuses this very request."""

    def __init__(self, response: Stored):
        super().__init__()
        self.response = response


def api_key(judge: str, settings: EndpointSettings) -> str:
    """Return a judge's key, from the environment alone; empty for a server that wants none. UserError: it is none."""
    if not (variable := settings.variable):
        return ""
    if not (key := os.environ.get(variable, "").strip()):
        raise UserError(
            f"judge {judge}: the environment variable {variable} is not set: export it with the endpoint's key"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(
            f"judge {judge}: the environment variable {variable} holds no key: one word of printable ASCII is wanted, "
            "and this has spaces, line ends or other characters"
        )
    return key


def _usage(text: str, most: Tokens) -> Tokens | None:
    """Return the tokens that a chat completion says it took, a token for four bytes where it does not say.

    None for what is no chat completion.
    """
    try:
        completion = json.loads(text)
        if not isinstance(completion["choices"][0], dict):
            return None
        usage = completion.get("usage") or {}
        return Tokens(
            int(usage.get("prompt_tokens") or most.into // BYTES_OF_A_TOKEN),
            int(usage.get("completion_tokens") or len(text) // BYTES_OF_A_TOKEN),
        )
    except (ValueError, TypeError, LookupError, AttributeError):
        return None


def _reason(error: Exception) -> str:
    told = str(error).splitlines() or [""]
    cause = f" ({type(error.__cause__).__name__}: {error.__cause__})" if error.__cause__ else ""
    return f"{told[0] or type(error).__name__}{cause}"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header, a number or a date (RFC 9110, 10.2.3), or of openai's in ms."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            return max(0.0, float(milliseconds) / 1000)
        if not (text := headers.get("retry-after")):
            return None
        if text.replace(".", "", 1).isdigit():
            return float(text)
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
