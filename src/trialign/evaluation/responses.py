"""What judges responded, in one SQLite file: several processes share it, and a kill loses nothing that was written.

A row of `responses` is one response, by the hash of all that was asked (`requests.key`). Before a request is sent its
key is claimed, so that no two processes pay for one; `lease` says whether whoever holds a claim lives. What a process
did not live to see, or what broke off, may have been paid for all the same: `lost` counts it by its upper bound.
Claims, losses and responses together are what a budget is held against.

The journal is SQLite's rollback journal: its write-ahead log does not work on file systems of a network.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from trialign import lease
from trialign.errors import UserError
from trialign.settings import EndpointSettings

FILE = "responses.sqlite"
BYTES_OF_A_TOKEN = 4  # about, of English text: where nothing says how many tokens it has
BUSY_SECONDS = 120.0  # how long to wait for another process's transaction
_TABLES = """
CREATE TABLE IF NOT EXISTS responses (key TEXT PRIMARY KEY, judge TEXT NOT NULL, request TEXT NOT NULL,
  bytes INTEGER NOT NULL, response TEXT NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL,
  made REAL NOT NULL);
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, judge TEXT NOT NULL, holder TEXT NOT NULL,
  tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS paid ON responses (judge, tokens_in, tokens_out);
CREATE TABLE IF NOT EXISTS lost (judge TEXT NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL);
"""


class Tokens(NamedTuple):
    """Tokens of requests and of responses."""

    into: int = 0
    out: int = 0

    def plus(self, other: Tokens) -> Tokens:
        """Return the sum."""
        return Tokens(self.into + other.into, self.out + other.out)

    def cost(self, price_in: float, price_out: float) -> float:
        """Return the price in USD; prices are in USD for a million tokens."""
        return (self.into * price_in + self.out * price_out) / 1e6


class Spent(NamedTuple):
    """What a judge has taken: responses that are there, the upper bounds of claims and of what was lost."""

    paid: Tokens
    claimed: Tokens
    lost: Tokens

    @property
    def most(self) -> Tokens:
        """The upper bound of all."""
        return self.paid.plus(self.claimed).plus(self.lost)


class Limits(NamedTuple):
    """A budget: USD and tokens (of requests and responses together), each None where there is no limit."""

    price_in: float = 0.0
    price_out: float = 0.0
    max_cost: float | None = None
    max_tokens: int | None = None

    @classmethod
    def of(cls, endpoint: EndpointSettings) -> Limits:
        """Return the budget that an endpoint's settings state."""
        return cls(endpoint.price_in, endpoint.price_out, endpoint.max_cost, endpoint.max_tokens)

    @property
    def none(self) -> bool:
        """Whether there is no budget."""
        return self.max_cost is None and self.max_tokens is None

    def hold(self, spent: Tokens) -> bool:
        """Say whether so much stays within the budget."""
        within = self.max_tokens is None or sum(spent) <= self.max_tokens
        return within and (self.max_cost is None or spent.cost(self.price_in, self.price_out) <= self.max_cost)


class Stored(NamedTuple):
    """A response as it came, and the tokens that it took."""

    text: str
    tokens: Tokens


class Claim(NamedTuple):
    """What `Responses.claim` found. stored: the response is there; granted: ask for it; neither: come back later."""

    stored: Stored | None = None
    granted: bool = False


class OverBudget(Exception):
    """The next request could pass the budget, and nothing is under way that could leave room for it."""


class Responses:
    """The file of responses; one object may serve several threads."""

    def __init__(self, path: Path) -> None:
        """Open the file, made if it is not there. UserError if it cannot be read as one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._lock = path, threading.Lock()
        self._me = json.dumps(lease.myself())
        self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            self._connection.execute("PRAGMA journal_mode = PERSIST")
            self._connection.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{path}: the stored responses cannot be opened ({error}); where the file is damaged, move it away: "
                "what was judged is published beside the results, only unfinished judging is asked for again"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def get(self, key: str) -> Stored | None:
        """Return the stored response, if it is there."""
        with self._lock:
            row = self._connection.execute(
                "SELECT response, tokens_in, tokens_out FROM responses WHERE key = ?", (key,)
            ).fetchone()
        return Stored(row[0], Tokens(*row[1:])) if row else None

    def claim(self, key: str, judge: str, most: Tokens, limits: Limits) -> Claim:
        """Claim a request before it is sent; `most`: the upper bound of what it takes.

        OverBudget: see there. UserError for a claim of which it cannot be told whether its holder lives.
        """
        if stored := self.get(key):
            return Claim(stored)
        if (holder := self._holder(key)) and self._holds(key, holder):
            return Claim()
        with self._transaction() as execute:
            if execute("SELECT 1 FROM responses WHERE key = ?", (key,)).fetchone():
                return Claim()  # it has just come
            if limits.none or limits.hold(self._spent(execute, judge).most.plus(most)):
                took = execute(
                    "INSERT OR IGNORE INTO claims VALUES (?, ?, ?, ?, ?)", (key, judge, self._me, most.into, most.out)
                )
                return Claim(granted=took.rowcount == 1)
        if not self._any_under_way(judge):  # what is under way may take less than it could
            raise OverBudget
        return Claim()

    def keep(self, key: str, judge: str, request: Mapping[str, Any], size: int, response: Stored) -> None:
        """Write down the response to a claimed request, whose texts have `size` bytes."""
        text = json.dumps(request, ensure_ascii=False)
        with self._transaction() as execute:
            execute(
                "INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (key, judge, text, size, response.text, *response.tokens, time.time()),
            )
            execute("DELETE FROM claims WHERE key = ? AND holder = ?", (key, self._me))

    def lose(self, key: str) -> None:
        """Give back the claim of a request that broke off, and count it as possibly paid."""
        self._lose(key, self._me)

    def release(self, key: str) -> None:
        """Give back the claim of a request that was refused: nothing was paid."""
        with self._transaction() as execute:
            execute("DELETE FROM claims WHERE key = ? AND holder = ?", (key, self._me))

    def spent(self, judge: str) -> Spent:
        """Return what a judge has taken so far."""
        with self._lock:
            return self._spent(self._connection.execute, judge)

    def rates(self, judge: str) -> tuple[float | None, float | None]:
        """Return the tokens of a byte of requests and the mean tokens of a response; None where nothing is stored."""
        with self._lock:
            into, size, out = self._connection.execute(
                "SELECT SUM(tokens_in), SUM(bytes), AVG(tokens_out) FROM responses WHERE judge = ? AND tokens_in > 0",
                (judge,),
            ).fetchone()
        return (into / size if into and size else None), out

    def _holder(self, key: str) -> str | None:
        with self._lock:
            row = self._connection.execute("SELECT holder FROM claims WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def _holds(self, key: str, holder: str) -> bool:
        """Say whether the holder of a claim lives; what a dead one had claimed is lost. UserError: nobody can tell."""
        if holder == self._me:
            return True
        told = json.loads(holder)
        alive = lease.lives(told)
        if alive is None:
            raise UserError(
                f"{self._path}: a request is claimed by process {told['pid']} on host {told['host']}, and whether it "
                "lives cannot be told from here; judge on that host, or, if it is gone for good, count its claims as "
                f'lost: sqlite3 {self._path} "INSERT INTO lost SELECT judge, tokens_in, tokens_out FROM claims WHERE '
                f"holder = '{holder}'; DELETE FROM claims WHERE holder = '{holder}'\""
            )
        if not alive:
            self._lose(key, holder)
        return alive

    def _lose(self, key: str, holder: str) -> None:
        with self._transaction() as execute:
            mine = (key, holder)
            execute(
                "INSERT INTO lost SELECT judge, tokens_in, tokens_out FROM claims WHERE key = ? AND holder = ?", mine
            )
            execute("DELETE FROM claims WHERE key = ? AND holder = ?", mine)

    def _any_under_way(self, judge: str) -> bool:
        """Say whether a request to a judge is under way; what dead processes had claimed is lost."""
        with self._lock:
            rows = self._connection.execute("SELECT key, holder FROM claims WHERE judge = ?", (judge,)).fetchall()
        living = [key for key, holder in rows if self._holds(key, holder)]
        return bool(living)

    @staticmethod
    def _spent(execute: Any, judge: str) -> Spent:
        sums = [
            execute(f"SELECT SUM(tokens_in), SUM(tokens_out) FROM {table} WHERE judge = ?", (judge,)).fetchone()
            for table in ("responses", "claims", "lost")
        ]
        return Spent(*(Tokens(into or 0, out or 0) for into, out in sums))

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        """Hold the file for writing, alone among threads and processes."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.execute
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
