"""How a study stands, for people: printed once, or kept up to date in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trialign import terminal
from trialign.errors import UserError

SILENT_SECONDS = 60.0  # a step that has told nothing for so long: since when is shown


def show(found: Mapping[str, Any]) -> None:
    """Print `status.look`'s findings."""
    console = terminal.console()
    for part in _whole(found).renderables:
        console.print(part, soft_wrap=isinstance(part, Text))  # paths and commands are copied: no breaks within


def live(looks: Iterable[Mapping[str, Any]]) -> None:
    """Show findings in place as they come, until there are no more or Ctrl-C. UserError without a terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        raise UserError("status: --live needs a terminal; leave it out, or take --json in a loop of your own")
    try:
        with Live(console=console, auto_refresh=False) as display:
            for found in looks:
                display.update(_whole(found), refresh=True)
    except KeyboardInterrupt:
        pass


def _whole(found: Mapping[str, Any]) -> Group:
    return Group(*_head(found), _stages(found), *_groups(found), *_sums(found))


def _head(found: Mapping[str, Any]) -> Iterator[Text]:
    done, every = found["jobs"]["done"], found["jobs"]["all"]
    share = f" ({done / every:.0%})" if every else ""
    text = f"{found['experiment']}: {done} of {every} jobs done{share}, of {' '.join(found['targets'])}"
    states = Counter(row["state"] for row in found["rows"] if row["asked"])
    yield Text("; ".join([text, *(f"{states[state]} {state}" for state in _COUNTED if states[state])]), "bold")
    for one in found["snakemake"]:
        yield Text(f"{one['who']} is at work" if one["lives"] else f"{one['who']}: may be at work, on another host")
    if not found["snakemake"] and done < every:
        yield Text("no Snakemake is at work in this folder")


def _stages(found: Mapping[str, Any]) -> Table:
    table = _table("", ["work", "done", "of", *_COUNTED])
    for row in found["by_stage"]:
        numbers = (row[state] for state in _COUNTED)
        table.add_row(row["stage"], str(row["done"]), str(row["all"]), *(str(number or "") for number in numbers))
    return table


def _groups(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    of = {state: [row for row in found["rows"] if row["state"] == state] for state in _HEADS}
    for state, (title, columns) in _HEADS.items():
        if not of[state]:
            continue
        if state in ("failed", "interrupted"):
            yield Text(f"{title}\n", "bold")
            yield from (_ended(row, found["at"]) for row in of[state])
            continue
        table = _table(title, list(columns))
        for row in of[state]:
            cells = {
                "what": row["what"] + ("" if row["asked"] else " (of other targets)"),
                "where": _where(row),
                "for": _ago(row["since"], found["at"]),
                "how far": _far(row["progress"], found["at"]),
                "why": row["slurm"].partition(": ")[2] + (f"; before: {row['said']}" if row["said"] else ""),
                "said": row["said"],
            }
            table.add_row(*(Text(cells[column]) for column in columns))
        yield table


_COUNTED = ("running", "waiting", "interrupted", "failed")
_HEADS = {  # state -> its title and its columns
    "running": ("Running", ("what", "where", "for", "how far")),
    "unknown": ("Cannot be told from here whether it runs", ("what", "where", "for", "how far")),
    "waiting": ("Waiting in SLURM's queue", ("what", "where", "why")),
    "again": ("To be started again, goes on from there", ("what", "said")),
    "interrupted": ("Interrupted: killed, goes on from its last checkpoint at the next start", ()),
    "failed": ("Failed", ()),
}


def _ended(row: Mapping[str, Any], now: float) -> Text:
    """Return what a person needs of a job that ended badly; the same as a running Snakemake's logger says."""
    when = f", {_ago(row['since'], now)} ago" if row["state"] == "failed" else f", {_where(row)}"
    far = _far(row["progress"], None)
    why = row["said"].partition("\n")[0] or far
    lines = [f"✗ {row['what']}{when}" + (f": {why}" if why else "")]
    if row["lines"]:
        lines += [f"  last lines of {row['log']}:", *(f"    {line}" for line in row["lines"])]
    if row["repeat"]:
        lines.append(f"  repeat it alone: {row['repeat']}")
    return Text("\n".join(lines) + "\n")


def _sums(found: Mapping[str, Any]) -> Iterator[Text]:
    spent, left = found["spent"], found["remaining"]
    unit = "gpu_hours" if found["gpus"] else "cpu_hours"
    name = "GPU-hours" if found["gpus"] else "CPU-hours"

    def money(hours: Mapping[str, Any]) -> str:
        return f" ({hours['usd']:,.2f} USD)" if hours["usd"] else ""

    text = f"spent: {_hours(spent[unit])} {name}{money(spent)}; to come by the plan: {_hours(left[unit])}{money(left)}"
    if left["wall_hours"]:
        text += f", {_hours(left['wall_hours'])} hours at {left['jobs_at_a_time']} jobs at a time"
    yield Text(text)
    yield from (Text(f"Note: {note}") for note in found["notes"])


def _hours(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.3g}"


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for column in columns:
        number = column in ("done", "of", "for", *_COUNTED)
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def _where(row: Mapping[str, Any]) -> str:
    """Return host and process, SLURM's job and its state there."""
    process = f"{row['host']}, process {row['pid']}" if row["host"] else ""
    state = row["slurm"].partition(":")[0]
    job = f"job {row['job']}" + (f" {state}" if state else "") if row["job"] else ""
    return ", ".join(filter(None, [job, process]))


def _far(progress: Mapping[str, Any], now: float | None) -> str:
    """Return how far a step is, in words; now: for what is at work, its time left and since when it is silent."""
    if not progress:
        return ""
    parts = [f"{progress['done']:,}/{progress['of']:,} {progress['unit']}"]
    if "loss" in progress:
        parts.append(f"loss {progress['loss']:.4f}")
    if now is None:
        return ", ".join(parts)
    silent = now - progress["told"]
    if "tokens_per_second" in progress:
        parts.append(f"{progress['tokens_per_second']:,.0f} tokens/s")
    if "seconds_left" in progress:
        parts.append(f"{_span(max(0.0, progress['seconds_left'] - silent))} left")
    if silent > SILENT_SECONDS:
        parts.append(f"nothing new for {_span(silent)}")
    return ", ".join(parts)


def _ago(since: float | None, now: float) -> str:
    return _span(now - since) if since else ""


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(max(0.0, seconds))))
