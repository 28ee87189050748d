"""A server that speaks the protocol of chat completions, in a process of its own, and fails as real ones do.

Run as `python endpoint_room.py FOLDER [--faults SHARE] [--latency SECONDS] ...`: it writes its port into FOLDER/port
and lines about each request into FOLDER/requests.jsonl: the hash of the body and what it did. A line says `answered`
once the last byte of a response is sent. Ratings follow from the body alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "sk-this-is-the-secret-of-the-tests"
MODEL = "gpt-test-2024-01-01"
FAULTS = ("429", "429 date", "429 none", "500", "502", "503", "hang", "drop", "drop half", "no json")
UNRATED = "I would rather not say."


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, settings: argparse.Namespace) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.settings, self.log = settings, (folder / "requests.jsonl").open("a")
        self.chance, self.guard = random.Random(settings.seed), threading.Lock()
        self.seen: dict[str, int] = {}
        self.paused = False
        self.free_at = 0.0
        (folder / "port.part").write_text(str(self.server_address[1]))
        (folder / "port.part").rename(folder / "port")

    def note(self, digest: str, what: str, **more: Any) -> None:
        with self.guard:
            self.log.write(json.dumps({"body": digest, "what": what, "at": time.time(), **more}) + "\n")
            self.log.flush()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_POST(self) -> None:
        settings = self.server.settings
        raw = self.rfile.read(int(self.headers["content-length"]))
        digest, key = hashlib.sha256(raw).hexdigest(), self.headers.get("authorization", "")
        with self.server.guard:
            fault = self.server.chance.choice(FAULTS) if self.server.chance.random() < settings.faults else None
            number = self.server.seen[digest] = self.server.seen.get(digest, 0) + 1
        self.server.note(digest, "came", fault=fault)
        if settings.refuse:
            self.say(int(settings.refuse), {"error": {"message": f"no: {key}", "code": settings.code}})
            self.server.note(digest, f"refused {settings.refuse}")
        elif settings.pause and self.first():
            self.say(429, {"error": {"message": "slower"}}, {"Retry-After": str(settings.pause)})
            self.server.note(digest, "failed pause")
        elif settings.interval and self.too_soon():
            self.say(429, {"error": {"message": "slower"}}, {"Retry-After": "0.1"})
            self.server.note(digest, "failed interval")
        elif fault:
            self.fail(fault, digest)
        else:
            time.sleep(settings.latency)
            self.answer(json.loads(raw), digest, number)

    def first(self) -> bool:
        with self.server.guard:
            self.server.paused, before = True, self.server.paused
        return not before

    def too_soon(self) -> bool:
        with self.server.guard:
            now = time.monotonic()
            if now < self.server.free_at:
                return True
            self.server.free_at = now + self.server.settings.interval
            return False

    def answer(self, body: dict[str, Any], digest: str, number: int) -> None:
        bad = self.server.settings.unrated
        text = UNRATED if number <= bad else f"Good. Rating: [[{int(digest[:8], 16) % 10 + 1}]]"
        usage = {"prompt_tokens": sum(len(m["content"]) for m in body["messages"]) // 4, "completion_tokens": 7}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        self.say(200, {"id": "x", "object": "chat.completion", "model": self.server.settings.model, "choices": [choice],
                       "usage": usage})  # fmt: skip
        self.server.note(digest, "answered", tokens=sum(usage.values()))

    def fail(self, fault: str, digest: str) -> None:
        error = {"error": {"message": f"fault {fault}", "type": "server_error"}}
        match fault:
            case "429":
                self.say(429, error, {"Retry-After": "0.2"})
            case "429 date":
                self.say(429, error, {"Retry-After": formatdate(time.time() + 1, usegmt=True)})
            case "429 none" | "500" | "502" | "503":
                self.say(int(fault[:3]), error)
            case "hang":
                time.sleep(self.server.settings.hang)
                self.drop()
            case "drop":
                self.drop()
            case "drop half":
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": [{"mess')
                self.drop()
            case "no json":
                self.send_response(200)
                self.send_header("Content-Length", "9")
                self.end_headers()
                self.wfile.write(b"<html>502")
        self.server.note(digest, f"failed {fault}")

    def drop(self) -> None:
        """Close the connection with a reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def say(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        for name, content in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, content)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""


class Endpoint:
    """The server as its tests see it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{(folder / 'port').read_text()}/v1"

    def lines(self, what: str = "") -> list[dict[str, Any]]:
        """The noted requests, or those of them that are `what`."""
        lines = [json.loads(line) for line in (self.folder / "requests.jsonl").read_text().splitlines()]
        return [line for line in lines if line["what"].startswith(what)]


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[Endpoint]:
    """Run a server."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "port").unlink(missing_ok=True)
    options = [f"--{name}={value}" for name, value in settings.items()]
    process = subprocess.Popen([sys.executable, __file__, str(folder), *options])
    try:
        end = time.monotonic() + 30
        while not (folder / "port").exists():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        yield Endpoint(folder)
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--faults", type=float, default=0)
    parser.add_argument("--latency", type=float, default=0)
    parser.add_argument("--pause", type=float, default=0, help="seconds that the first request is told to wait")
    parser.add_argument("--interval", type=float, default=0, help="seconds in which one request is taken")
    parser.add_argument("--hang", type=float, default=30)
    parser.add_argument("--unrated", type=int, default=0, help="responses without a rating, before one with")
    parser.add_argument("--refuse", default="", help="the status with which all is refused")
    parser.add_argument("--code", default=None)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    Server(arguments.folder, arguments).serve_forever()
