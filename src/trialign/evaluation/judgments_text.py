"""Reports on judgments as tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trialign import terminal


def report(found: Mapping[str, Any]) -> None:
    """Print what `judgments.report` returns."""
    for model in found["models"]:
        statuses = ", ".join(f"{name}: {number}" for name, number in model["statuses"].items() if number)
        rows = [
            ("rows, of them reruns", f"{model['rows']}, {model['reruns']}"),
            ("answers and turns, unjudged", f"{model['judgments']}, {model['unjudged']}"),
            ("statuses of the rows", statuses),
        ]
        if model["scores_read_otherwise"]:
            rows.append(("scores that the texts do not say", str(model["scores_read_otherwise"])))
        if scores := model["scores"]:
            strict = scores["strict"]
            rows += [
                ("mean, FastChat's", _fastchats(scores["fastchat"])),
                ("mean, strict", _estimate(strict)),
                *((f"  turn {turn}", _estimate(part)) for turn, part in strict["turns"].items()),
                *((f"  {name}", _estimate(part)) for name, part in strict["categories"].items()),
                *_variance(scores["variance"]),
            ]
        _table(f"{model['model']}, judged by {model['judge']}", rows)
        if model["error"]:
            Console(highlight=False, stderr=True).print(f"no score: {escape(model['error'])}")
    for split in found["seeds"]:
        _table(f"{split['lineage']}, judged by {split['judge']}, {split['seeds']} seeds", _variance(split["variance"]))


def agreement(found: Mapping[str, Any]) -> None:
    """Print what `judgments.agreement` returns."""
    first, second = found["judges"]
    low, high = found["difference"]["interval"]
    about = f" [{low:.3f}, {high:.3f}]" if low is not None else ""
    models = found["models"]
    _table(f"{first} (A) and {second} (B)", [
        ("answers rated by both", str(found["pairs"])),
        ("rated by one only; other answers under one name", f"{found['only_one_rated']}; {found['other_answers']}"),
        ("the same rating; at most one apart", f"{found['exact']:.1%}; {found['within_one']:.1%}"),
        ("A less B", f"{found['difference']['mean']:+.3f}{about}"),
        ("rank correlation of ratings: Spearman, Kendall",
         f"{_number(found['spearman'])}, {_number(found['kendall'])}"),
        ("pairs of models put into the same order", _share(found["preferences"])),
        (f"rank correlation of {models['n']} models: Spearman, Kendall",
         f"{_number(models['spearman'])}, {_number(models['kendall'])}"),
    ])  # fmt: skip


def forecast(found: Mapping[str, Any]) -> None:
    """Print what `forecast.forecast` returns."""
    if not found["judges"]:
        terminal.console().print(f"{found['experiment']}: no judge behind an endpoint, nothing to pay")
    for judge in found["judges"]:
        budget = [
            f"{judge[name]:g} {unit}" for name, unit in (("max_cost", "USD"), ("max_tokens", "tokens")) if judge[name]
        ]
        basis = "measured" if judge["tokens_measured"] else "four bytes a token"
        open_runs = sum(not run["answered"] for run in judge["runs"])
        _table(f"{judge['judge']} ({judge['model']})", [
            ("runs, not answered yet", f"{len(judge['runs'])}, {open_runs}"),
            ("requests, stored already", f"{judge['requests']:,}, {judge['stored']:,}"),
            (f"tokens to come in, out ({basis})", f"{judge['tokens_in']:,}, {judge['tokens_out']:,}"),
            ("USD to come", f"{judge['usd']:,.2f}"),
            ("spent so far", f"{judge['spent_tokens']:,} tokens, {judge['spent_usd']:,.2f} USD"),
            ("budget", (" and ".join(budget) or "none") + ("" if judge["within_budget"] else ": not enough")),
        ])  # fmt: skip


def _variance(split: Mapping[str, float | None] | None) -> list[tuple[str, str]]:
    named = (split or {}).items()
    return [(f"  variance of a rating: {name}", f"{value:.4f}") for name, value in named if value is not None]


def _estimate(part: Mapping[str, Any]) -> str:
    if part["mean"] is None:
        return "-"
    low, high = part["interval"]
    about = f" [{low:.3f}, {high:.3f}]" if low is not None else ""
    return f"{part['mean']:.4f}{about}  (n = {part['n']}, {part['questions']} questions)"


def _fastchats(part: Mapping[str, Any]) -> str:
    return "-" if part["mean"] is None else f"{part['mean']:.4f}  (n = {part['n']})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _table(title: str, rows: Iterable[Sequence[str]]) -> None:
    made = Table(title=escape(title), box=box.SIMPLE_HEAD, title_justify="left", show_header=False)
    for row in rows:
        made.add_row(*map(escape, row))
    terminal.console().print(made)
