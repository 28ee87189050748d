"""A model folder behind a server of the OpenAI protocol (vLLM, SGLang, llama.cpp): started, asked, ended.

Prompts go as token ids to `/completions`, so that chat template and BOS are the recipe's, whatever the server would do.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trialign.errors import UserError
from trialign.evaluation.parallel import in_parallel
from trialign.processes import end_with_parent, free_port

if TYPE_CHECKING:
    from trialign.evaluation.mtbench import Prompt

START_SECONDS = 3600.0  # a large model is read from a slow disk and compiled
END_SECONDS = 30.0
POLL_SECONDS = 0.2
RETRIES = 5
_PLAIN = {"top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}  # nothing but the temperature shapes the distribution


class Server:
    """A server that serves one model."""

    def __init__(self, client: Any, model: str, log: Path) -> None:
        """model: what the server calls it."""
        self._client, self._model, self._log = client, model, log

    def write(
        self, batches: Iterator[list[Prompt]], stops: list[int], at_a_time: int
    ) -> Iterator[list[dict[str, Any]]]:
        """Answer batches of one prompt, `at_a_time` of them, and yield each as it comes; see `mtbench.Writer.write`.

        stops: ids that end an answer. UserError where the server fails.
        """
        from openai import OpenAIError

        try:
            for _, record in in_parallel(lambda batch: self._one(batch[0], stops), batches, at_a_time):
                yield [record]
        except OpenAIError as error:
            raise UserError(
                f"answers.server fails ({type(error).__name__}: {str(error).splitlines()[0]}); what it said itself is "
                f"in {self._log}"
            ) from error

    def _one(self, prompt: Prompt, stops: list[int]) -> dict[str, Any]:
        from trialign.evaluation.mtbench import record

        if prompt.room <= 0:
            return record(prompt, "", 0, "no_room")
        made = self._client.completions.create(
            model=self._model,
            prompt=prompt.ids,
            max_tokens=prompt.room,
            temperature=prompt.temperature,
            seed=prompt.seed % 2**31,
            extra_body={**_PLAIN, "stop_token_ids": stops},
        )
        choice = made.choices[0]
        tokens = made.usage.completion_tokens if made.usage else 0
        return record(prompt, choice.text, tokens, "length" if choice.finish_reason == "length" else "eos")


@contextmanager
def serving(command: str, folder: Path, log: Path) -> Iterator[Server]:
    """Serve a model folder for as long as the context lasts.

    command: of the server, with {model} and {port}. UserError where it ends, or does not answer within an hour.
    """
    import httpx2
    from openai import OpenAI

    port = free_port("127.0.0.1")
    if missing := [name for name in ("{model}", "{port}") if name not in command]:
        raise UserError(f"answers.server: '{command}' has no {missing[0]}: it says where the model or the port goes")
    words = [
        word.replace("{model}", str(folder.absolute())).replace("{port}", str(port)) for word in shlex.split(command)
    ]
    try:
        with log.open("ab") as file:
            process = subprocess.Popen(
                words, stdout=file, stderr=file, start_new_session=True,
                preexec_fn=end_with_parent,  # noqa: PLW1509 no threads are at work yet
            )  # fmt: skip
    except OSError as error:
        raise UserError(
            f"answers.server: '{words[0]}' cannot be started ({error.strerror}); install it, or name its path"
        ) from error
    try:
        direct = httpx2.Client(trust_env=False)  # this machine is behind no proxy
        client = OpenAI(api_key="none", base_url=f"http://127.0.0.1:{port}/v1", max_retries=RETRIES, http_client=direct)
        yield Server(client, _model(client, process, log), log)
    finally:
        _end(process)


def _model(client: Any, process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the server answers. Returns what it calls the model."""
    from openai import OpenAIError

    quick, end = client.with_options(max_retries=0, timeout=5.0), time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with suppress(OpenAIError):
            if models := quick.models.list().data:
                return str(models[0].id)
        time.sleep(POLL_SECONDS)
    ended = f"ended with status {process.returncode}" if process.poll() is not None else "does not answer"
    last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["nothing"]
    raise UserError(f"answers.server {ended}; the last line of {log}: {last[0]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server with all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
