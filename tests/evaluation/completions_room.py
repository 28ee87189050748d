"""A server of `/v1/completions` for a model folder: `python completions_room.py MODEL PORT`.

Greedy or sampled token by token, without cache or generation code; prints each request as a line of JSON.
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

folder, port = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
guard = threading.Lock()


def complete(body: dict[str, Any]) -> tuple[list[int], str]:
    ids, new = body["prompt"], []
    generator = torch.Generator().manual_seed(body["seed"])
    while len(new) < body["max_tokens"]:
        with torch.no_grad():
            logits = model(torch.tensor([ids + new])).logits[0, -1]
        if body["temperature"]:
            new.append(int(torch.multinomial((logits / body["temperature"]).softmax(0), 1, generator=generator)))
        else:
            new.append(int(logits.argmax()))
        if new[-1] in body["stop_token_ids"]:
            return new, "stop"
    return new, "length"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.say({"object": "list", "data": [{"id": folder, "object": "model", "created": 0, "owned_by": "test"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with guard:
            print(json.dumps({key: value for key, value in body.items() if key != "prompt"}), flush=True)
            new, reason = complete(body)
        text = tokenizer.decode(new, skip_special_tokens=True)
        self.say({
            "id": "x", "object": "text_completion", "created": 0, "model": body["model"],
            "choices": [{"index": 0, "text": text, "finish_reason": reason, "logprobs": None}],
            "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(new), "total_tokens": 0},
        })  # fmt: skip

    def say(self, value: Any) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
