"""The command line. `trialign step` runs one step, as the rules do; the other commands are for people."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import socket
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from trialign import slurm
from trialign.errors import Again, UserError, nearest

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Reproducible studies of how language models are aligned.",
)

Configs = Annotated[list[Path], typer.Argument(help="Config files; later ones overlay earlier ones.")]


@app.command()
def step(
    recipe: Annotated[str, typer.Argument(help="The recipe, as JSON.")],
    inputs: Annotated[list[str] | None, typer.Argument(metavar="[NAME=PATH]...", help="Inputs.")] = None,
    *,
    root: Annotated[Path, typer.Option(help="The results tree.")],
    output: Annotated[Path, typer.Option(help="The folder that receives the result.")],
    log: Annotated[Path, typer.Option(help="Where the step's output goes.")],
    processes: Annotated[int, typer.Option(min=1, help="Processes of a training on a node, one for each GPU.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of a training: of the SLURM job that this runs in.")] = 1,
) -> None:
    """Run one step: make its result, or take it from the store, and link it into OUTPUT."""
    from trialign import paths, recipes, steps

    try:
        parsed = recipes.parse(recipe)
    except ValueError as error:
        raise UserError(f"this is not a recipe: {str(error).splitlines()[0]}; let snakemake write it") from None
    groups: dict[str, tuple[Path, ...]] = defaultdict(tuple)
    for pair in inputs or ():
        name, _, path = pair.partition("=")
        groups[name] += (Path(path),)
    again, failed = log.with_suffix(paths.AGAIN), log.with_suffix(paths.FAILED)
    with _slow_to_fail():
        terminal, script = _send_output_to(log)
        for marker in (again, failed):
            marker.unlink(missing_ok=True)
        try:
            done = steps.run(parsed, groups, root, output, processes, nodes, log)
            print(f"{done} {output}", flush=True)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except Again as asked:
            print(f"to be started again: {asked}", file=sys.stderr, flush=True)
            again.write_text(json.dumps({"reason": asked.reason, "after": asked.after}))
            print(f"{parsed.step} {output}: {asked}; start it again, it goes on from there", file=terminal, flush=True)
            raise typer.Exit(1) from None
        except Exception as error:
            print(_failure(f"{parsed.step} {output}", error, log, script), file=terminal, flush=True)
            with contextlib.suppress(OSError):  # the log's own disk may be the full one
                print("".join(_told(error)), file=sys.stderr, flush=True)
                failed.write_text(json.dumps({"at": time.time(), "error": str(error) or type(error).__name__}))
            raise typer.Exit(1) from None


@contextlib.contextmanager
def _slow_to_fail() -> Iterator[None]:
    """Let a failure of a step that runs beside a cluster's controller end as late as SLURM jobs are put off.

    What fails for a while, as on a full disk, must not cost it all its attempts, which Snakemake starts at once.
    """
    try:
        yield
    except (typer.Exit, UserError) as error:
        if getattr(error, "exit_code", 1) == 1:
            time.sleep(float(os.environ.get(slurm.LOCAL_RETRY_SECONDS, "0")))
        raise


def _told(error: Exception) -> list[str]:
    return [f"error: {error}"] if isinstance(error, UserError) else traceback.format_exception(error)


def _send_output_to(log: Path) -> tuple[Any, Path]:
    """Send this process's output to the log.

    Returns the terminal, for what a person must see, and the script that repeats the step. UserError where neither can
    be written.
    """
    job = f", SLURM job {number}" if (number := slurm.own_job()) else ""
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        script = _write_script(log.with_suffix(".sh"))
        with log.open("a") as file:  # what earlier starts said stays
            print(f"--- {now}, {socket.gethostname()}{job}", file=file, flush=True)
            terminal = os.fdopen(os.dup(2), "w")
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    except OSError as error:
        raise UserError(f"{log}: this step's log cannot be written: {error.strerror}") from error
    return terminal, script


def _write_script(script: Path) -> Path:
    """Write the command that repeats this step alone; also for a process that is killed and says nothing more."""
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    command = shlex.join(sys.argv)
    script.write_text(
        f"#!/bin/sh\ncd {shlex.quote(str(Path.cwd()))} || exit 1\nOMP_NUM_THREADS={threads} exec {command}\n"
    )
    return script


def _failure(name: str, error: Exception, log: Path, script: Path) -> str:
    """Return what a person needs at a failed job: which run, why, how to repeat it alone. The logger adds the log."""
    return f"{name} failed: {error}\n  log: {log}\n  repeat it alone: sh {script}"


@app.command()
def check(configs: Configs) -> None:
    """Check a config and say what it asks for."""
    from trialign import config, study

    experiment = config.load_files(configs)
    for name, artifact in experiment.artifacts.items():
        typer.echo(f"{name}: {artifact.title}, {_of(len(study.lineages(experiment, artifact)), 'lineage')}")
    runs = {lineage for artifact in experiment.artifacts.values() for lineage in study.lineages(experiment, artifact)}
    typer.echo(
        f"{experiment.name}: {_of(len(experiment.artifacts), 'artifact')}, "
        f"{_of(len(runs), 'lineage')} x {_of(len(experiment.seeds), 'seed')}"
    )


def _of(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")


ConfigFiles = Annotated[list[str] | None, typer.Option(help="As for snakemake; once for each file.")]
Profile = Annotated[str | None, typer.Option(help="As for snakemake.")]
Overrides = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="As for snakemake; repeatable.")]


@app.command()
def plan(
    targets: Annotated[list[str] | None, typer.Argument(help="Targets, as for snakemake; default: all.")] = None,
    configfile: ConfigFiles = None,
    profile: Profile = None,
    config: Overrides = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Jobs at a time; default: the profile's.")] = None,
    rate: Annotated[float | None, typer.Option(min=0, help="USD for a GPU-hour; default: the config's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what targets take before it is spent: GPU-hours, wall hours, money, disk, the judge's tokens."""
    from trialign import plan as planning

    wanted = targets or ["all"]
    dag = planning.dry_run(wanted, configfile or (), profile, config or (), jobs)
    found = planning.summary(dag, wanted, rate)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        planning.show(found)


judging = typer.Typer(
    invoke_without_command=True,
    help="Judgments: what they will cost, how two judges agree, FastChat's files read again.",
)
app.add_typer(judging, name="judge")


@judging.callback()
def judge(
    context: typer.Context,
    agreement: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Compare two judges of the same answers: files of judgments, or folders."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count the requests to come, their tokens, price.")
    ] = False,
    configfile: ConfigFiles = None,
    profile: Profile = None,
    config: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Judgments: what they will cost, how two judges agree, FastChat's files read again."""
    if context.invoked_subcommand:
        return
    if (agreement is None) == (not dry_run):
        raise UserError("judge: give --dry-run, --agreement A B, or a command: import, answers (trialign judge --help)")
    from trialign import plan as planning
    from trialign.evaluation import forecast, judgments, judgments_text

    if dry_run:
        found = forecast.forecast(planning.dry_run(["all"], configfile or (), profile, config or ()))
        return _tell(found, judgments_text.forecast, as_json)
    tables = [judgments.read([path], {}) for path in agreement or ()]
    return _tell(judgments.agreement(*tables), judgments_text.agreement, as_json)


@judging.command(name="import")
def import_judgments(
    files: Annotated[list[Path], typer.Argument(help="Files of FastChat's model_judgment (*_single.jsonl), or ours.")],
    questions: Annotated[Path | None, typer.Option(help="The question.jsonl that names their categories.")] = None,
    max_unjudged: Annotated[float, typer.Option(min=0, max=1, help="Largest unjudged share with a score.")] = 0.05,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Read judgments again: two means, intervals, and what has no rating. Exit status 1 where a model has no score."""
    from trialign.evaluation import judgments, judgments_text

    found = judgments.report(judgments.read(files, judgments.categories_of(questions)), max_unjudged)
    _tell(found, judgments_text.report, as_json)
    if any(model["error"] for model in found["models"]):
        raise typer.Exit(1)


@judging.command()
def answers(
    file: Annotated[Path, typer.Argument(help="A model's answers, in FastChat's format (model_answer/*.jsonl).")],
    judge: Annotated[str, typer.Option(help="A judge of the config that judges a benchmark.")],
    output: Annotated[Path, typer.Option(help="The folder that receives the judgments.")],
    configfile: ConfigFiles = None,
    profile: Profile = None,
    config: Overrides = None,
) -> None:
    """Judge answers that another tool wrote, by a judge of the config; what was judged is never paid twice."""
    from trialign import plan as planning
    from trialign import steps, study

    experiment = planning.dry_run(["all"], configfile or (), profile, config or ()).experiment
    if judge not in study.judges(experiment):
        there = ", ".join(study.judges(experiment)) or "none"
        raise UserError(
            f"--judge: no benchmark is judged by '{judge}'{nearest(judge, study.judges(experiment))}: {there}"
        )
    source = study.source_path(experiment, study.question_sources(experiment)[0])
    inputs = {"answers": (file,), "questions": (Path(source),)}
    study.write_endpoints(experiment)
    steps.run(study.judge_recipe(experiment, judge), inputs, Path(experiment.results_dir), output)
    typer.echo(f"{output}: judgments.jsonl, results.json, items.parquet, card.html")


def _tell(found: dict[str, Any], text: Callable[[dict[str, Any]], None], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        text(found)


@app.command()
def status(
    targets: Annotated[list[str] | None, typer.Argument(help="Targets, as for snakemake; default: all.")] = None,
    configfile: ConfigFiles = None,
    profile: Profile = None,
    config: Overrides = None,
    live: Annotated[bool, typer.Option("--live", help="Keep it up to date, until all is done or Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how a study stands: done, running and how far, waiting and why, failed, spent. It disturbs nothing."""
    from trialign import plan as planning
    from trialign import status as standing
    from trialign import status_text

    wanted = targets or ["all"]

    def planned() -> planning.Dag:
        return planning.dry_run(wanted, configfile or (), profile, config or ())

    if live and as_json:
        raise UserError("status: --live is for people, --json for scripts: give one of them")
    if live:
        return status_text.live(standing.watch(planned, wanted))
    _tell(standing.look(planned(), wanted), status_text.show, as_json)


@app.command()
def doctor(
    slurm: Annotated[bool, typer.Option("--slurm", help="A SLURM cluster; run it on the login node.")] = False,
    configfile: ConfigFiles = None,
    profile: Annotated[str, typer.Option(help="As for snakemake.")] = "profiles/slurm",
    config: Overrides = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds that the probe's job may wait for its start.")] = 120,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a cluster before the first job; each finding with its remedy. Exit status 1 where there is a problem."""
    from dataclasses import asdict

    from trialign import doctor as examining
    from trialign import plan as planning

    if not slurm:
        raise UserError("doctor: what is to be checked? --slurm is what there is")
    dag = planning.dry_run(["all"], configfile or (), profile, config or ())
    findings = []
    for finding in examining.examine(dag, examining.read_profile(profile), wait):
        findings.append(finding)
        if not as_json:
            examining.show(finding, typer.echo)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


@app.command()
def prune(
    configfile: ConfigFiles = None,
    profile: Profile = None,
    config: Overrides = None,
    parents: Annotated[bool, typer.Option("--parents", help="Also models that others were trained on.")] = False,
    work: Annotated[bool, typer.Option("--work", help="Also checkpoints of interrupted steps.")] = False,
    yes: Annotated[bool, typer.Option("--yes/--dry-run", help="Do it; default: only say what would go.")] = False,
) -> None:
    """Remove models that no open artifact needs, leaves first; say before what it takes to have them again."""
    from trialign import plan as planning
    from trialign import prune as pruning

    dag = planning.dry_run(["all"], configfile or (), profile, config or ())
    entries = pruning.manifest(dag, parents=parents, work=work)
    if not entries:
        typer.echo("nothing to prune: open artifacts need what is there, or others were trained on it (--parents)")
        return
    pruning.show(entries)
    if yes:
        freed = pruning.remove(dag.experiment, entries)
        typer.echo(f"{freed / 1e9:,.3f} GB freed; the manifest: {dag.experiment.results_dir}/{pruning.MANIFEST}")
    else:
        typer.echo(f"{sum(entry.bytes for entry in entries) / 1e9:,.3f} GB; nothing is removed yet: --yes does it")


@app.command()
def lock(
    configs: Configs,
    upgrade: Annotated[bool, typer.Option("--upgrade", help="Resolve what is locked already, too.")] = False,
) -> None:
    """Write the commits and file hashes of all downloads into the config's lock file."""
    from trialign import config, study
    from trialign import lock as locking
    from trialign.settings import WebFiles

    experiment = config.load_files(configs)
    if experiment.lock is None:
        raise UserError("config: lock: not named; give the file that is to hold the lock, such as config/lock.json")
    locking.use_mirror(experiment.mirror)
    from trialign.data import hub, web  # after the mirror is known: the hub's client reads it when imported

    before, folder = locking.read(Path(experiment.lock)), locking.folder_of(experiment.mirror) is not None
    for name, source in study.downloads(experiment).items():
        found = None if upgrade else before.of(source, folder=folder)
        entry = found or (web.resolve(source) if isinstance(source, WebFiles) else hub.resolve(source))
        state = "kept" if found else "locked"
        print(f"{state:<6} {name}: {entry.place}, {len(entry.files)} files, {entry.bytes / 1e9:.3f} GB")
        locking.add(entry, Path(experiment.lock))


@app.command()
def reference(folder: Annotated[Path, typer.Option(help="The config folder.")] = Path("config")) -> None:
    """Write the config reference and the JSON schema from the typed models."""
    from trialign import reference as generated

    generated.write(folder)


@app.command()
def environment(lock: Annotated[Path, typer.Option(help="The lock.")] = Path("requirements.lock")) -> None:
    """Write environment.yml with the pins of the lock."""
    from trialign import reference as generated

    Path("environment.yml").write_text(generated.environment(lock.read_text()))


@app.command()
def show(root: Annotated[Path, typer.Argument(help="A results tree, such as results/demo.")]) -> None:
    """Print Tables 1-3 and say where the rest lies."""
    from trialign.reporting.show import print_tables

    print_tables(root, ["table1", "table2", "table3"])


@app.command()
def explain(
    path: Annotated[Path, typer.Argument(help="A file of an artifact, or a run, suite or data folder.")],
    row: Annotated[str | None, typer.Option(help="A row: its texts as in the table, or a lineage.")] = None,
    column: Annotated[str | None, typer.Option(help="A column: its heading, or a benchmark.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Compute every hash again; 1 where one does not fit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with whole recipes and records.")] = False,
) -> None:
    """Say what stands behind a result: every step from an artifact or a cell to its sources."""
    from trialign.reporting import explain as explaining
    from trialign.reporting import explain_text

    chain = explaining.explain(path, row, column)
    if not check:
        return _tell(explaining.as_json(chain), lambda found: explain_text.show(chain), as_json)
    report = explain_text.checked(chain)
    _tell(dataclasses.asdict(report), lambda found: explain_text.show_report(report), as_json)
    if report.problems:
        raise typer.Exit(1)


@app.command()
def crate(
    root: Annotated[Path, typer.Argument(help="A results tree, such as results/demo.")],
    out: Annotated[Path, typer.Argument(help="A folder that is not there yet, or a .zip.")],
    models: Annotated[bool, typer.Option("--models", help="With the weights, not their hashes alone.")] = False,
) -> None:
    """Write a whole study as an RO-Crate: results, what stands behind them, and each step as an action."""
    from trialign.reporting.crate import export

    counts = export(root, out, models=models)
    typer.echo(
        f"{out}: {counts['steps']} steps, {counts['files']} files of {counts['bytes'] / 1e6:,.1f} MB; "
        f"{counts['by_hash']} files by their hash alone"
    )


@app.command()
def rulegraph(out: Annotated[Path, typer.Argument(help="The picture, without its suffix.")]) -> None:
    """Draw the rule graph that `snakemake --rulegraph dot` prints (read from standard input) as .svg and .png."""
    from trialign.reporting.rulegraph import draw

    draw(sys.stdin.read(), out)


def main() -> None:
    """Entry point: a user's mistake is one line and exit status 2."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        print(f"trialign: {error}", file=sys.stderr)
        sys.exit(2)
