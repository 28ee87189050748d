"""Chains for people: a tree on the terminal, from an artifact or a cell down to what nothing stands behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.tree import Tree as Branches

from trialign import terminal
from trialign.reporting import explain, verify
from trialign.reporting.cells import Cell
from trialign.reporting.explain import Chain
from trialign.reporting.tree import Made, Record
from trialign.reporting.verify import Report

SHOWN_VALUES = 24  # of a recipe
SHOWN_FILES = 5
SHORT = 12  # hexadecimal digits of a hash
_UNTOLD = {"step", "version", "name", "title", "caption", "notice"}


def show(chain: Chain, console: Console | None = None) -> None:
    """Print a chain; a step that several others stand on is told once."""
    console = console or terminal.console()
    for cell in chain.cells:
        console.print(_cell(cell))
    top = chain.steps[chain.top]
    branches = Branches(_told(top, ""), guide_style="dim")
    _grow(branches, chain, top, {chain.top})
    console.print(branches)
    for line in _sums(chain):
        console.print(line)


def checked(chain: Chain) -> Report:
    """Check a chain; how far it is stands on the terminal meanwhile, on standard error."""
    columns = TextColumn("checking"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=verify.size(chain))
        return verify.check(chain, lambda read: progress.advance(task, read))


def show_report(report: Report, console: Console | None = None) -> None:
    """Print what a check found, a line each, and how much was checked."""
    console = console or terminal.console(terminal.UNBOUNDED)
    for problem in report.problems:
        console.print(f"[red]does not fit[/]  {escape(problem)}")
    for what_not in report.unchecked:
        console.print(f"[yellow]not checked[/]   {escape(what_not)}")
    verdict = f"{len(report.problems)} do not fit" if report.problems else "everything fits"
    console.print(f"{report.files} files, {report.bytes / 1e6:,.1f} MB checked: {verdict}")


def _grow(branches: Branches, chain: Chain, made: Made, told: set[str]) -> None:
    for each in chain.inputs(made):
        if each.place is None:
            where = escape(each.given or "the record does not say where")
            branches.add(f"[dim]{each.name}:[/] local files, {where}  [dim]contents {each.fingerprint[:SHORT]}[/]")
            continue
        part = f"{each.name}" + (f" ({each.place})" if each.place not in (".", "model") else "")
        below = chain.steps[each.fingerprint]
        if each.fingerprint in told:
            branches.add(f"[dim]{escape(part)}: {below.step} {escape(below.where)}, told above[/]")
            continue
        told.add(each.fingerprint)
        _grow(branches.add(_told(below, part)), chain, below, told)


def _told(made: Made, part: str) -> str:
    """Return the lines of a step: what it is, what shaped it, how and when it was made, what it holds."""
    lead = f"[dim]{escape(part)}:[/] " if part else ""
    if made.record is None:
        return f"{lead}[red]nothing in this tree says what made {made.fingerprint}[/]"
    record = made.record
    lines = [
        f"{lead}[bold]{made.step}[/] {escape(what(record))}  [cyan]{escape(made.where)}[/]  "
        f"[dim]{made.fingerprint[:SHORT]}[/]",
        f"[dim]recipe[/] {escape(_clipped(list(_flat(record['recipe'])), SHOWN_VALUES))}",
        f"[dim]made[/]   {escape(_how(record))}",
        f"[dim]files[/]  {escape(_files(record))}",
    ]
    if also := [place.folder.as_posix() for place in made.places[1:]]:
        lines.append(f"[dim]also[/]   {escape(', '.join(also))}")
    if made.pruned:
        lines.append(f"[yellow]its files were removed by trialign prune, {made.pruned}[/]")
    elif not made.stored:
        lines.append("[yellow]the store does not hold it any more[/]")
    elif not made.places:
        lines.append("[yellow]no declared place holds it any more: it was made anew since, or deleted[/]")
    return "\n".join(lines)


def what(record: Record) -> str:
    """Return in a few words what a step made."""
    recipe, facts = record["recipe"], record.get("facts") or {}
    return _WHAT.get(recipe["step"], _artifact)(recipe, facts)


def _artifact(recipe: Record, facts: Record) -> str:
    del facts
    return str(recipe.get("title", ""))


def _fetch(recipe: Record, facts: Record) -> str:
    repository, locked = recipe["repository"], len(recipe["files"])
    commit = facts.get("commit") or recipe["commit"] or "not known"
    held = f"{locked} files held to the lock's hashes" if locked else "not locked"
    return f"{repository['type']} {repository['repo']} at {repository['revision']}, commit {commit}, {held}"


def _web(recipe: Record, facts: Record) -> str:
    del facts
    source = recipe["source"]
    named = sum(value != "unknown" for value in source["files"].values())
    return f"{source['base']}: {len(source['files'])} files, {named} of them held to a hash"


def _data(recipe: Record, facts: Record) -> str:
    del recipe
    dropped = ", ".join(f"{count} {reason}" for reason, count in (facts.get("dropped") or {}).items())
    rows = ", ".join(f"{count} {split}" for split, count in (facts.get("rows") or {}).items())
    return f"{rows} of {facts.get('rows_in')} rows; dropped: {dropped or 'none'}"


def _train(recipe: Record, facts: Record) -> str:
    params = ", ".join(f"{name} {value}" for name, value in recipe["params"].items())
    if "diverged" in facts:
        return f"{recipe['method']} ({params}), which diverged"
    loss = (facts.get("final") or {}).get("loss")
    done = f"{facts.get('steps')} steps, {facts.get('tokens')} tokens" + (f", loss {loss:.4g}" if loss else "")
    return f"{recipe['method']}{f' ({params})' if params else ''} on {recipe['view']}, seed {recipe['seed']}: {done}"


def _pretrain(recipe: Record, facts: Record) -> str:
    return (
        f"a base model ({recipe['settings']['architecture']}), pre-trained here, seed {recipe['seed']}: "
        f"{facts.get('parameters')} parameters"
    )


def _evaluate(recipe: Record, facts: Record) -> str:
    device = (facts.get("protocol") or {}).get("device")
    return f"{', '.join(recipe['benchmarks'])}{f' on {device}' if device else ''}"


def _answer(recipe: Record, facts: Record) -> str:
    return f"{facts.get('rows_in')} answers, seed {recipe['seed']}"


def _judge(recipe: Record, facts: Record) -> str:
    entry = (facts.get("benchmarks") or {}).get(recipe["benchmark"], {})
    counts = ", ".join(f"{count} {status}" for status, count in entry.get("statuses", {}).items() if count)
    served = ", ".join((facts.get("judge") or {}).get("served") or ())
    who = recipe["judge"].get("model") or recipe["judge"]["kind"]
    return f"judgments by {recipe['name']} ({who}{f', served {served}' if served else ''}): {counts}"


_WHAT: dict[str, Callable[[Record, Record], str]] = {
    "world": lambda recipe, facts: f"the demo's world, seed {recipe['settings'].get('seed')}",
    "fetch": _fetch,
    "web": _web,
    "tokenizer": lambda recipe, facts: f"{facts.get('size')} tokens, template {recipe['chat_template']}",
    "pretrain": _pretrain,
    "import": lambda recipe, facts: f"a published model, {facts.get('bytes', 0) / 1e9:.3f} GB of weights",
    "chat": _data,
    "triples": _data,
    "tokens": _data,
    "reference": lambda recipe, facts: f"log-probabilities of {', '.join(facts.get('branches') or ())}",
    "overlap": lambda recipe, facts: "which benchmark questions the data holds",
    "train": _train,
    "evaluate": _evaluate,
    "answer": _answer,
    "judge": _judge,
    "results": lambda recipe, facts: f"all numbers: {facts.get('rows')} rows",
}


def _flat(value: Mapping[str, Any], lead: str = "") -> Iterator[str]:
    """Yield `key=value` of each value of a recipe that says something; of long lists their length."""
    for key, each in value.items():
        if (not lead and key in _UNTOLD) or each is None or each in ("", [], {}):
            continue
        if isinstance(each, Mapping):
            yield from _flat(each, f"{lead}{key}.")
        elif isinstance(each, list) and any(isinstance(item, Mapping | list) for item in each):
            yield f"{lead}{key}=({len(each)})"
        elif isinstance(each, list):
            yield f"{lead}{key}={','.join(map(str, each[:4]))}" + (f",... ({len(each)})" if len(each) > 4 else "")
        else:
            yield f"{lead}{key}={each}"


def _clipped(values: Sequence[str], most: int) -> str:
    more = f" ... ({len(values) - most} more: --json)" if len(values) > most else ""
    return " ".join(values[:most]) + more


def _how(record: Record) -> str:
    code = record.get("code")
    version = f"trialign {record['versions']['trialign']}"
    if code:
        version += f" at {code['commit'][:SHORT]}{', files changed since' if code['changed'] else ''}"
    hours = explain.gpu_hours(record)
    gpus = "GPU-hours not known" if hours is None else f"{hours:.3g} GPU-hours" if hours else "no GPU"
    return f"{record['started']}, {_duration(record['seconds'])} on {record['host']}, {gpus}; {version}"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 3600:.2f} h"


def _files(record: Record) -> str:
    """Return names and hashes of the first files, weights before others."""
    files = sorted(record["files"].items(), key=lambda item: (not item[0].endswith(".safetensors"), item[0]))
    return _clipped([f"{name} {digest[:SHORT]}" for name, digest in files], SHOWN_FILES)


def _cell(cell: Cell) -> str:
    lines = [
        f"[bold]{escape(cell.row)}[/] x [bold]{escape(cell.column)}[/]: {escape(cell.shown or 'no number')}"
        + (f"  [dim]{escape(cell.lineage)}[/]" if cell.lineage else "")
    ]
    for part in cell.parts:
        n = "" if part.n is None else f"{part.n} {'' if part.items == 'all' else part.items + ' '}items"
        metric = f" ({part.metric})" if part.metric else ""
        said = "; ".join(filter(None, (n, part.note)))
        lines.append(f"  {escape(part.benchmark)}{escape(metric)}, seed {part.seed}: {escape(said)}")
    return "\n".join(lines)


def _sums(chain: Chain) -> Iterator[str]:
    sums = explain.totals(chain)
    unknown = f", not known of {sums['gpu_hours_unknown']} steps" if sums["gpu_hours_unknown"] else ""
    yield (
        f"{sums['steps']} steps, {_duration(sums['hours'] * 3600)} of work on {', '.join(sums['hosts'])}, "
        f"{sums['gpu_hours']:.3g} GPU-hours{unknown}"
    )
    seen: dict[str, list[str]] = {}
    for made in chain.steps.values():
        if made.record:
            versions = {"python": made.record["python"]} | made.record["versions"]
            text = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
            seen.setdefault(text, []).append(made.step)
    for text, steps in seen.items():
        which = f" [dim]({len(steps)} steps: {', '.join(dict.fromkeys(steps))})[/]" if len(seen) > 1 else ""
        yield f"[dim]versions[/] {escape(text)}{which}"
    for made in chain.missing:
        yield f"[red]the chain breaks at {made.fingerprint}: neither the store nor a declared place holds its record[/]"
