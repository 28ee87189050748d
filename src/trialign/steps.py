"""How a step runs: work directory under a lease, atomic publish, provenance. Every step goes through `run`.

A step is a function of one argument, a `Step`. It reads `step.recipe` and `step.inputs`, writes its result into
`step.out`, may keep what a restart needs (checkpoints) in `step.scratch`, and returns facts for `run.json`.

`run` gives it `.work/<fingerprint>/{out,scratch}` in the results tree, moves the finished `out` to
`.store/<fingerprint>` by one rename, and links it to where it was asked for. What is in the store already is linked
again in milliseconds.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from trialign import lease, paths, progress
from trialign.errors import UserError
from trialign.progress import Progress
from trialign.recipes import Recipe

R = TypeVar("R")
RUN_JSON = "run.json"
SNAKEMAKE_TIMESTAMP = ".snakemake_timestamp"  # appears in directory outputs after the step has ended
VERSIONS = ("trialign", "torch", "transformers", "trl", "datasets", "accelerate", "lm-eval", "pandas", "numpy")

# step -> where its function is; imported when it runs, so that no step pays for another's imports
FUNCTIONS = {
    "world": "trialign.demo.world:build",
    "fetch": "trialign.data.hub:fetch",
    "web": "trialign.data.web:fetch",
    "tokenizer": "trialign.data.tokenizers:tokenizer",
    "import": "trialign.data.tokenizers:import_model",
    "chat": "trialign.data.chat:prepare",
    "triples": "trialign.data.triples:prepare",
    "tokens": "trialign.data.tokens:tokenise",
    "pretrain": "trialign.training.pretrain:pretrain",
    "reference": "trialign.training.reference:compute",
    "train": "trialign.training.train:train",
    "choose": "trialign.training.choose:choose",
    "overlap": "trialign.evaluation.overlap:overlap",
    "evaluate": "trialign.evaluation.harness:evaluate",
    "answer": "trialign.evaluation.mtbench:answer",
    "judge": "trialign.evaluation.judge:judge",
    "table": "trialign.reporting.tables:table",
    "pivot": "trialign.reporting.tables:pivot",
    "facts": "trialign.reporting.tables:facts",
    "claims": "trialign.reporting.claims:claims",
    "grid": "trialign.reporting.grids:grid",
    "heatmap": "trialign.reporting.grids:heatmap",
    "forest": "trialign.reporting.forest:forest",
    "curves": "trialign.reporting.curves:curves",
    "distributions": "trialign.reporting.distributions:distributions",
    "results": "trialign.reporting.results:results",
    "index": "trialign.reporting.index:index",
}


@dataclass(frozen=True)
class Step(Generic[R]):
    """One step at work.

    recipe: the typed recipe. inputs: named input paths. out: the folder to fill with the result, empty at the start.
    scratch: a folder that survives a kill and is removed once the result is published. processes: how many the step may
    run on, one for each GPU, on each of its `nodes`. shared: a folder of the results tree for what outlives all steps;
    None: there is no tree. place: what is made, as a path below that tree, such as runs/<lineage>/seed<k>.
    """

    recipe: R
    inputs: Mapping[str, tuple[Path, ...]]
    out: Path
    scratch: Path
    processes: int = 1
    nodes: int = 1
    shared: Path | None = None
    place: str = ""

    @property
    def progress(self) -> Progress:
        """Where the step says how far it is."""
        return Progress(self.scratch.parent)

    def input(self, name: str) -> Path:
        """Return the only input called `name`; KeyError or ValueError if there is none or there are several."""
        (path,) = self.inputs[name]
        return path


def run(
    recipe: Recipe,
    inputs: Mapping[str, tuple[Path, ...]],
    root: Path,
    output: Path,
    processes: int = 1,
    nodes: int = 1,
    log: Path | None = None,
) -> str:
    """Make the step's result, or take it from the store, and link it into the folder `output`.

    root: the results tree. processes, nodes: see `Step`; no part of what identifies the result. log: where its output
    goes, for whoever asks what is at work. Returns "made" or "restored".
    One process at a time works on a step (two outputs can be one step's: the tokenizers of two models with one recipe):
    see `lease.held` for what the others do. UserError: a missing input, a full disk. Again: to be continued in another
    start. What the step itself raises leaves its scratch folder to the next start.
    """
    try:
        place = output.relative_to(root) if output.is_relative_to(root) else output
        means = _Means(processes, nodes, root / paths.SHARED, place.as_posix())
        return _run(recipe, inputs, root, output, means, log)
    except Exception as error:  # libraries that write say it in errors of their own
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error):
            raise UserError(
                f"{root}: no space left on the disk, or in its quota; nothing that was finished is lost: make room "
                "(trialign prune says what could go), then start again"
            ) from error
        raise


class _Means(NamedTuple):
    """What a step works with beside its inputs, in the order of `Step`."""

    processes: int
    nodes: int
    shared: Path
    place: str


def _run(
    recipe: Any, inputs: Mapping[str, tuple[Path, ...]], root: Path, output: Path, means: _Means, log: Path | None
) -> str:  # fmt: skip
    fingerprints = {name: [input_fingerprint(path) for path in group] for name, group in inputs.items()}
    fingerprint = digest({"recipe": json.loads(recipe.canonical()), "inputs": fingerprints})
    stored = root / paths.STORE / fingerprint
    done = "restored"
    if not (stored / RUN_JSON).is_file():
        what = {"step": recipe.step, "place": means.place, "log": str(log or "")}
        with lease.held(root / paths.WORK / fingerprint, what) as work:
            if not (stored / RUN_JSON).is_file():
                _make(recipe, inputs, fingerprints, fingerprint, work, stored, means)
                done = "made"
    _link(stored, output, _provenance_path(recipe, root, output))
    return done


def digest(value: Any) -> str:
    """Return the first 32 hexadecimal digits of the SHA-256 of a JSON-able value's canonical text."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def input_fingerprint(path: Path) -> str:
    """Return what identifies an input: the fingerprint of the step that made it and its place in that result.

    A path that no step made (a local folder or file) is identified by the hash of its contents.
    """
    if not path.exists():
        raise UserError(f"{path}: this input does not exist; make it first, or let snakemake make it")
    for folder in [path, *path.parents]:
        if (folder / RUN_JSON).is_file():
            made = json.loads((folder / RUN_JSON).read_text())
            if made.keys() >= {"fingerprint", "recipe", "inputs"}:  # not a file of the user's that has the same name
                return f"{made['fingerprint']}/{path.relative_to(folder).as_posix()}"
    return digest(hashes(path))


def hashes(path: Path) -> dict[str, str]:
    """Return relative file name -> SHA-256 of every file of a folder (or of the one file), in order of name."""
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    return {
        file.relative_to(path).as_posix(): hashlib.file_digest(file.open("rb"), "sha256").hexdigest()
        for file in files
        if file.name not in (SNAKEMAKE_TIMESTAMP, RUN_JSON)
    }


def _make(
    recipe: Any,
    inputs: Mapping[str, tuple[Path, ...]],
    fingerprints: Mapping[str, list[str]],
    fingerprint: str,
    work: Path,
    stored: Path,
    means: _Means,
) -> None:
    out, scratch = work / "out", work / "scratch"
    shutil.rmtree(out, ignore_errors=True)  # half a result of an earlier start is never read
    out.mkdir(parents=True)
    scratch.mkdir(exist_ok=True)
    (work / progress.FILE).unlink(missing_ok=True)  # an earlier start's
    started, clock, commit = datetime.now(UTC), time.monotonic(), code()
    if recipe.step not in ("fetch", "web"):
        _switch_off_hub(scratch)
    facts = _function(recipe)(Step(recipe, inputs, out, scratch, *means))
    record = {
        "fingerprint": fingerprint,
        "recipe": json.loads(recipe.canonical()),
        "inputs": fingerprints,
        "given": {name: [path.as_posix() for path in group] for name, group in inputs.items()},
        "facts": facts,
        "files": hashes(out),
        "versions": versions(),
        "code": commit,
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 3),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "gpus": _gpus(means),
    }
    (out / RUN_JSON).write_text(json.dumps(record, indent=1, sort_keys=True, default=str) + "\n")
    stored.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(stored, ignore_errors=True)
    out.rename(stored)


def _function(recipe: Any) -> Callable[[Step[Any]], dict[str, Any]]:
    module, _, name = FUNCTIONS[recipe.step].partition(":")
    gc.disable()  # the collector finds nothing in a million imported objects, and takes a quarter of the time
    function = getattr(importlib.import_module(module), name)
    gc.freeze()
    gc.enable()
    return function


def _switch_off_hub(scratch: Path) -> None:
    """Only downloads touch the network: compute nodes need none, and nothing unpinned gets in.

    The hub's client reads this when it is imported, so the step's module is imported afterwards.
    """
    os.environ.update(
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HOME=str(scratch / "huggingface"),  # nothing is written into the home folder
        TQDM_MININTERVAL="10",  # progress bars end up in a log
    )


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that shape results."""
    return {name: importlib.metadata.version(name) for name in VERSIONS}


def code() -> dict[str, Any] | None:
    """Return the commit of the git checkout that this package runs from, and whether its files differ from that.

    None where it runs from no checkout (an installed package), or git is not there to ask.
    """
    here = Path(__file__)

    def git(*arguments: str) -> str:
        asked = ["git", "--no-optional-locks", "-C", str(here.parent), *arguments]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # an environment may lie in a checkout of something else
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _gpus(means: _Means) -> int:
    """Return how many GPUs the step worked on: one for each of several processes, or this one's if it took one."""
    torch = sys.modules.get("torch")
    number = means.processes * means.nodes
    if number > 1:  # the others were children's
        return number if torch and torch.cuda.is_available() else 0
    return int(bool(torch and torch.cuda.is_initialized()))


def _provenance_path(recipe: Any, root: Path, output: Path) -> Path:
    """Artifacts share the results root: their records lie together in `provenance/`, the others' beside the result."""
    name = getattr(recipe, "name", recipe.step)
    return root / paths.PROVENANCE / f"{name}.json" if output == root else output / RUN_JSON


def _link(stored: Path, output: Path, record: Path) -> None:
    """Hard-link a stored result to where it was asked for, replacing what is there; copy where links are impossible.

    The record goes first and comes back last: a kill in between never leaves a new result with an old record. What is
    there already stays untouched: others may be reading it.
    """
    if _is_linked(stored, output, record):
        return
    output.mkdir(parents=True, exist_ok=True)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    for item in sorted(stored.iterdir()):
        target = output / item.name
        if item.name == RUN_JSON:
            continue
        if item.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(item, target, copy_function=link_file)
        else:
            target.unlink(missing_ok=True)
            link_file(str(item), str(target))
    link_file(str(stored / RUN_JSON), str(record))


def _is_linked(stored: Path, output: Path, record: Path) -> bool:
    """Say whether every file of a stored result is there as the very same file, its record too."""
    for file in (path for path in stored.rglob("*") if path.is_file()):
        there = record if file.name == RUN_JSON and file.parent == stored else output / file.relative_to(stored)
        if not (there.is_file() and there.samefile(file)):
            return False
    return True


def link_file(source: str, target: str) -> str:
    """Give a published file another name; a copy where hard links are impossible. Returns `target`."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
