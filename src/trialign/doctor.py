"""Doctor: whether a SLURM cluster can run an experiment, before its first job; each finding with its remedy.

`examine` looks at the plan (Snakemake's own dry run: what jobs ask for, and of which account and partition), at what
SLURM says of itself, and sends a job of a minute to a compute node that looks around there (`trialign.doctor_probe`).
It changes nothing: what the probe writes below the results tree is gone afterwards.
"""

from __future__ import annotations

import getpass
import json
import math
import os
import re
import resource
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from trialign import known, plan, preflight, slurm
from trialign.config import Experiment
from trialign.doctor_probe import Seen
from trialign.errors import UserError, nearest
from trialign.plan import Dag, Job

COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol")
OLDEST = (20, 11)  # srun's and sbatch's options that the executor uses; tests run 22.05
PROBE_MINUTES, PROBE_MB = 5, 2000
TMP_MB = 1000
SKEW_SECONDS = 5.0
# What the probe's script ends with; see `_script`.
NO_DIRECTORY, NO_RESULTS, READ_ONLY, NO_PYTHON, NO_TRIALIGN = 71, 72, 73, 74, 75
DOWNLOADS = "fetch them first, on a transfer node that sees this directory: snakemake downloads"
Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """What a check found, and what to do about it where that is not ok."""

    check: str
    level: Level
    found: str
    remedy: str = ""


class Place(NamedTuple):
    """What jobs are submitted to: each as the profile says, empty where it says nothing."""

    account: str
    partition: str
    qos: str


@dataclass(frozen=True)
class Profile:
    """A Snakemake profile: its file, and what it says."""

    file: Path
    options: Mapping[str, Any]

    def number(self, name: str, default: int) -> int:
        """Return a number that the profile gives."""
        return int(self.options.get(name, default))

    @property
    def attempts(self) -> int:
        """How often a job is started at most."""
        return 1 + self.number("retries", 0)


@dataclass(frozen=True)
class Cluster:
    """What SLURM says of itself. associations, qualities: None without accounting."""

    settings: Mapping[str, str]
    partitions: Mapping[str, Mapping[str, str]]
    nodes: Sequence[Mapping[str, str]]
    associations: Sequence[Mapping[str, str]] | None
    qualities: Sequence[Mapping[str, str]] | None

    @property
    def enforced(self) -> bool:
        """Whether jobs without a known account are refused."""
        return not self.settings.get("AccountingStorageEnforce", "none").startswith(("none", "(null)"))


def read_profile(name: str) -> Profile:
    """Read a profile as Snakemake finds it. UserError where there is none."""
    from snakemake.cli import get_profile_dir

    found = get_profile_dir(name)
    if found is None:
        raise UserError(f"{name}: there is no such profile; profiles/slurm is the one for SLURM")
    return Profile(found[1], yaml.safe_load(found[1].read_text()) or {})


def examine(dag: Dag, profile: Profile, wait: float) -> Generator[Finding, None, None]:
    """Yield the findings, each as it is made. wait: seconds that the probe may wait for its start."""
    yield _versions()
    yield from _downloads(dag)
    yield _disk(dag)
    if absent := [name for name in COMMANDS if not shutil.which(name)]:
        remedy = "go to the cluster's login node, or load its SLURM module there (module load slurm)"
        yield Finding("commands", "problem", f"{', '.join(absent)}: not on the PATH", remedy)
        return
    try:
        cluster = _cluster()
    except slurm.Silent as error:
        remedy = "scontrol ping says whether the controller is up; SLURM_CONF, where set, must name this cluster's file"
        yield Finding("reachable", "problem", f"SLURM does not answer: {error}", remedy)
        return
    yield _reachable(cluster)
    yield from _accounting(cluster, profile)
    yield from _numbers(cluster, dag, profile)
    jobs = [job for job in dag.needed if not job.local]
    if not jobs:
        yield Finding("plan", "ok", "everything is there already: no job is to be submitted")
    for place in dict.fromkeys(Place(job.account, job.partition, job.qos) for job in jobs):
        theirs = [job for job in jobs if Place(job.account, job.partition, job.qos) == place]
        findings = [*_account(cluster, place, profile), *_partition(cluster, place, theirs, profile)]
        yield from findings
        problems = {finding.check for finding in findings if finding.level == "problem"}
        if problems & {"account", "partition", "qos"}:
            yield Finding("probe", "warning", "no job is sent to look at a compute node", "again, once that is mended")
        else:
            gpus = 0 if "GPUs" in problems else min(1, max(_asked(job).gpus for job in theirs))
            yield from _probe(dag.experiment, place, theirs, gpus, profile, wait)


def _cluster() -> Cluster:
    settings = slurm.settings()
    accounting = "slurmdbd" in settings.get("AccountingStorageType", "")
    return Cluster(
        settings,
        {each["PartitionName"]: each for each in slurm.partitions()},
        slurm.nodes(),
        slurm.associations(settings.get("ClusterName", "")) if accounting else None,
        slurm.qualities() if accounting else None,
    )


# --- this machine -----------------------------------------------------------------------------------------------------


def _versions() -> Finding:
    from packaging.requirements import Requirement

    pins = [Requirement(text) for text in requires("trialign") or ()]
    others = [f"{pin.name} {_installed(pin.name)} (pinned{pin.specifier})" for pin in pins if not _fits(pin)]
    if others:
        return Finding("versions", "problem", ", ".join(others), "make setup, or pip install -r requirements.lock")
    return Finding("versions", "ok", f"trialign {version('trialign')}, {len(pins)} packages as pinned")


def _fits(pin: Any) -> bool:
    return bool(pin.specifier.contains(_installed(pin.name), prereleases=True))


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "0"  # no release: it fits no pin


def _downloads(dag: Dag) -> Iterator[Finding]:
    """Check what Snakemake itself does here for days, and what it fetches."""
    sources = [job.wildcards["source"] for job in dag.needed if job.rule == "fetch"]
    limit = resource.getrlimit(resource.RLIMIT_CPU)[0]
    if limit != resource.RLIM_INFINITY:
        found = (
            f"processes here end after {limit / 60:.0f} minutes of CPU time (ulimit -t), downloads and Snakemake too"
        )
        remedy = "start Snakemake where there is no such limit, or as a job of its own; " + DOWNLOADS
        yield Finding("login limits", "warning", found, remedy)
    if not sources:
        yield Finding("downloads", "ok", "nothing is to be fetched")
    elif lacks := list(preflight.network(dag.experiment, sources)):
        yield Finding("downloads", "problem", lacks[0].removeprefix("network: "), DOWNLOADS)
    else:
        size = sum(known.source_mb(dag.experiment, name) for name in sources) / 1000
        yield Finding(
            "downloads", "ok", f"{len(sources)} sources, {size:,.1f} GB; or, on a transfer node: snakemake downloads"
        )


def _disk(dag: Dag) -> Finding:
    root = Path(dag.experiment.results_dir).absolute()
    place = next(folder for folder in [root, *root.parents] if folder.exists())
    free = shutil.disk_usage(place).free / 1e9
    simulated = plan.schedule(dag.needed, dag.at_a_time)
    rest, peak = simulated.rest_mb / 1000, simulated.peak_mb / 1000
    found = f"{free:,.0f} GB free in {place} (a quota is not seen); {rest:,.0f} GB stay, {peak:,.0f} at the peak"
    remedy = "another results_dir; fewer `jobs` at a time lower the peak; trialign plan says what takes it"
    if free >= peak:
        return Finding("disk", "ok", found)
    return Finding("disk", "problem" if free < rest else "warning", found, remedy)


# --- what SLURM says --------------------------------------------------------------------------------------------------


def _reachable(cluster: Cluster) -> Finding:
    name, told = cluster.settings.get("ClusterName", ""), cluster.settings.get("SLURM_VERSION", "0")
    found = f"cluster {name}, SLURM {told}, {len(cluster.nodes)} nodes, you are {getpass.getuser()}"
    if tuple(map(int, re.findall(r"\d+", told)[:2])) < OLDEST:
        return Finding(
            "reachable", "warning", found, "the executor needs SLURM 20.11 or later: ask the cluster's support"
        )
    return Finding("reachable", "ok", found)


def _accounting(cluster: Cluster, profile: Profile) -> Iterator[Finding]:
    """Check where states come from once squeue has forgotten a job, and the report that reads the accounting."""
    if cluster.associations is not None:
        yield Finding("accounting", "ok", "slurmdbd: squeue tells states, sacct those that it has forgotten")
        return
    report = "trialign-slurm-efficiency-report"
    if profile.options.get(report):
        remedy = f"{report}: false in {profile.file}"
        yield Finding("accounting", "warning", "none: the efficiency report at the end has nothing to read", remedy)
    else:
        yield Finding("accounting", "ok", "none: squeue tells states")
    interval = "trialign-slurm-init-seconds-before-status-checks"
    kept, asked = int(re.findall(r"\d+", cluster.settings.get("MinJobAge", "300"))[0]), profile.number(interval, 40)
    if kept < 2 * asked:
        found = f"SLURM forgets a job {kept} s after its end, and is asked every {asked} s: it would count as failed"
        yield Finding("job age", "problem", found, f"{interval}: {max(1, kept // 3)} in {profile.file}")


def _numbers(cluster: Cluster, dag: Dag, profile: Profile) -> Iterator[Finding]:
    """Check the numbers of jobs and of an array's tasks against what SLURM takes."""
    most = int(cluster.settings.get("MaxJobCount", "10000"))
    if dag.at_a_time > most:
        found = f"`jobs` is {dag.at_a_time}, the whole cluster takes {most} (MaxJobCount)"
        yield Finding("jobs", "problem", found, f"jobs: {most // 2} in {profile.file}")
    largest = int(cluster.settings.get("MaxArraySize", "1001")) - 1
    option = "trialign-slurm-array-limit"
    tasks = profile.number(option, 1000) if profile.options.get("trialign-slurm-array-jobs") else 1
    if tasks > max(1, largest):
        found = f"arrays of up to {tasks} tasks, this cluster takes {largest} (MaxArraySize is one more)"
        remedy = f"{option}: {largest}" if largest > 1 else "remove trialign-slurm-array-jobs"
        yield Finding("arrays", "problem", found, f"{remedy} in {profile.file}")


def _account(cluster: Cluster, place: Place, profile: Profile) -> Iterator[Finding]:
    if cluster.associations is None:
        yield Finding("account", "ok", f"{place.account or 'none'}: without accounting nothing knows accounts")
        return
    mine = sorted({row["Account"] for row in cluster.associations})
    names = ", ".join(mine) or "none"
    level: Level = "problem" if cluster.enforced else "warning"
    remedy = f"slurm_account in {profile.file}: one of yours ({names})" if mine else "ask the cluster's support for one"
    if place.account and place.account not in mine:
        found = f"'{place.account}' is not an account of yours{nearest(place.account, mine)}"
        yield Finding("account", level, found, remedy)
    elif not place.account and len(mine) != 1:
        found = (
            f"slurm_account is not filled in, and you have {'several' if mine else 'none'}: jobs go to SLURM's default"
        )
        yield Finding("account", level if not mine else "warning", found, remedy)
    else:
        yield Finding("account", "ok", place.account or f"{names}, your only one")
    qualities = [row["Name"] for row in cluster.qualities or ()]
    if place.qos and place.qos not in qualities:
        found = f"'{place.qos}': no such quality of service{nearest(place.qos, qualities)}"
        yield Finding("qos", "problem", found, f"qos in {profile.file}: one of {', '.join(qualities)}")
    most = min(
        (float(row[name]) for name, row in _limits(cluster, place, "MaxSubmitJobs") if row[name]), default=math.inf
    )
    if (jobs := profile.number("jobs", 1)) > most:
        found = f"`jobs` is {jobs}, and you may have {most:.0f} in the queue: submissions beyond are refused"
        yield Finding("jobs", "problem", found, f"jobs: {most:.0f} in {profile.file}")


def _limits(cluster: Cluster, place: Place, limit: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield the rows, and their column, that limit this place: associations, and the quality of service."""
    charged = [row for row in cluster.associations or () if row["Account"] == place.account or not place.account]
    yield from ((limit, row) for row in charged)
    default = {row["DefaultQOS"] or "normal" for row in charged}
    column = "MaxSubmitJobsPerUser" if limit == "MaxSubmitJobs" else limit
    for row in cluster.qualities or ():
        if row["Name"] == place.qos or (not place.qos and row["Name"] in default):
            yield column, row


# --- a partition and its nodes ----------------------------------------------------------------------------------------


def _partition(cluster: Cluster, place: Place, jobs: Sequence[Job], profile: Profile) -> Iterator[Finding]:
    default = [name for name, each in cluster.partitions.items() if each.get("Default") == "YES"]
    names = place.partition.split(",") if place.partition else default
    there = ", ".join(cluster.partitions)
    if not names:
        remedy = f"slurm_partition in {profile.file}: one of {there}"
        yield Finding(
            "partition", "problem", "slurm_partition is not filled in, and this cluster has no default", remedy
        )
    for name in names:
        if name not in cluster.partitions:
            found = f"there is no partition '{name}'{nearest(name, cluster.partitions)}"
            yield Finding("partition", "problem", found, f"slurm_partition in {profile.file}: one of {there}")
            return
        yield _state(cluster, cluster.partitions[name], place)
    chosen = [cluster.partitions[name] for name in names]
    nodes = [node for node in cluster.nodes if {*names} & {*node.get("Partitions", "").split(",")}]
    label = place.partition or f"the default, {', '.join(names)}"
    if nodes:
        yield from _sizes(nodes, jobs, label, profile)
    yield from _times(cluster, place, chosen, jobs, profile)
    if any(each.get("PreemptMode", "OFF") != "OFF" for each in chosen):
        modes = ", ".join(sorted({each["PreemptMode"] for each in chosen}))
        yield Finding("preemption", "ok", f"{modes}: what is displaced is started anew and goes on from its checkpoint")


def _usable(node: Mapping[str, str]) -> bool:
    return not {"DOWN", "DRAIN", "FAIL", "NOT_RESPONDING"} & {*re.split(r"[+*]", node.get("State", "DOWN"))}


def _state(cluster: Cluster, partition: Mapping[str, str], place: Place) -> Finding:
    name, state = partition["PartitionName"], partition.get("State", "UP")
    nodes = [node for node in cluster.nodes if name in node.get("Partitions", "").split(",")]
    usable = sum(map(_usable, nodes))
    found = f"{name}: {state}, {usable} of {len(nodes)} nodes usable, up to {partition.get('MaxTime')}"
    allowed = partition.get("AllowAccounts", "ALL").split(",")
    denied = partition.get("DenyAccounts", "").split(",")
    if state != "UP":
        return Finding("partition", "problem", found, "another partition (sinfo -s), or wait until it is up again")
    if place.account and (place.account in denied or (allowed != ["ALL"] and place.account not in allowed)):
        told = f"{name}: account '{place.account}' may not use it"
        return Finding(
            "partition", "problem", told, f"an account that it allows ({', '.join(allowed)}), or another partition"
        )
    if not usable:
        return Finding("partition", "problem", found, f"sinfo -R -p {name} says why; another partition, or wait")
    return Finding("partition", "ok", found)


class Size(NamedTuple):
    """What a node has, or a job asks for."""

    gpus: int
    mem_mb: int
    cpus: int


def _size(node: Mapping[str, str]) -> Size:
    memory = int(node.get("RealMemory", 0)) - int(node.get("MemSpecLimit", 0))
    return Size(sum(gpu_kinds(node).values()), memory, int(node.get("CPUEfctv") or node.get("CPUTot", 0)))


def gpu_kinds(node: Mapping[str, str]) -> dict[str, int]:
    """Return the kinds of a node's GPUs (empty: not named), and how many there are."""
    found = re.findall(r"gpu(?::([^:,()]*[^\d:,()][^:,()]*))?(?::(\d+))?(?=[,(]|$)", node.get("Gres", ""))
    return {kind: int(number or 1) for kind, number in found}


def _asked(job: Job, attempt: int = 1) -> Size:
    return Size(job.resources.get("gpu", 0), int(job.resources.get("mem_mb", 0) * (attempt + 1) / 2), job.threads)


def _sizes(nodes: Sequence[Mapping[str, str]], jobs: Sequence[Job], label: str, profile: Profile) -> Iterator[Finding]:
    """Check what jobs ask for against the nodes: each kind alone, then that one node has it all."""
    sizes = [_size(node) for node in nodes]
    lacks = list(_lacks(sizes, jobs, label))
    yield from lacks
    alone = [job for job in jobs if not any(_within(_asked(job), size) for size in sizes)]
    if alone and not lacks:
        found = f"no node of {label} has all that {_names(alone)} asks for: {_asked(alone[0])}"
        yield Finding("nodes", "problem", found, "another partition, or less of it in the config's resources")
    elif not lacks:
        most = Size(*map(max, zip(*(_asked(job) for job in jobs), strict=True)))
        found = (
            f"{len(jobs)} jobs ask for up to {most.mem_mb} MB, {most.cpus} CPUs and {most.gpus} GPUs: nodes have them"
        )
        yield Finding("nodes", "ok", found)
        again = [job for job in jobs if not any(_within(_asked(job, profile.attempts), size) for size in sizes)]
        if again:
            memory = _asked(again[0], profile.attempts).mem_mb
            found = f"a last attempt of {_names(again)} asks for {memory} MB: no node has it"
            remedy = f"fewer retries in {profile.file}, or a partition with more memory"
            yield Finding("retries", "warning", found, remedy)
    yield from _gpus(nodes, jobs, label)


def _within(asked: Size, has: Size) -> bool:
    return all(one <= other for one, other in zip(asked, has, strict=True))


def _lacks(sizes: Sequence[Size], jobs: Sequence[Job], label: str) -> Iterator[Finding]:
    words = (
        ("GPUs", "gpus", "resources.train.gpus in the config, or a partition with GPUs: sinfo -o '%P %G'"),
        ("memory", "mem_mb", "a partition with more (sinfo -o '%P %m'), or mem_mb in the config's resources"),
        ("CPUs", "cpus", "threads in the config's resources, or a partition with more: sinfo -o '%P %c'"),
    )
    for number, (name, unit, remedy) in enumerate(words):
        most = max(size[number] for size in sizes)
        over = sorted((job for job in jobs if _asked(job)[number] > most), key=lambda job: -_asked(job)[number])
        if over:
            found = f"{_names(over)} asks for {_asked(over[0])[number]} ({unit}), a node of {label} has {most} at most"
            yield Finding(name, "problem", found, remedy)


def _gpus(nodes: Sequence[Mapping[str, str]], jobs: Sequence[Job], label: str) -> Iterator[Finding]:
    if not any(_asked(job).gpus for job in jobs):
        yield Finding("GPUs", "ok", "no job asks for one")
        return
    kinds = sorted({kind or "unnamed" for node in nodes for kind in gpu_kinds(node)})
    if len(kinds) > 1:
        remedy = "a partition of one kind, or gpu_model in default-resources: estimates and batches are for one"
        yield Finding("kinds of GPUs", "warning", f"{label} has {', '.join(kinds)}: a job gets any", remedy)
    elif kinds:
        yield Finding("kinds of GPUs", "ok", f"{label}: {kinds[0]}")


def _names(jobs: Sequence[Job]) -> str:
    return jobs[0].name + (f" (and {len(jobs) - 1} more)" if len(jobs) > 1 else "")


def _times(
    cluster: Cluster, place: Place, partitions: Sequence[Mapping[str, str]], jobs: Sequence[Job], profile: Profile
) -> Iterator[Finding]:
    """Check the minutes that jobs ask for against partition, association and quality of service."""
    limits = [max((_minutes(each.get("MaxTime", "")) for each in partitions), default=math.inf)]
    limits += [_minutes(row[name]) for name, row in _limits(cluster, place, "MaxWall")]
    limit = min(limits)
    asked = sorted(jobs, key=lambda job: -job.resources.get("runtime", 0))
    longest = asked[0].resources.get("runtime", 0)
    over = [job for job in asked if job.resources.get("runtime", 0) > limit]
    remedy = (
        f"a partition with a longer limit (sinfo -o '%P %l'), or resources.*.runtime: {limit:.0f} in the config: "
        f"training that runs out of time goes on from its checkpoint in another job"
    )
    if over:
        yield Finding("time", "problem", f"{_names(over)} asks for {longest} minutes, the limit is {limit:.0f}", remedy)
    elif longest * (profile.attempts + 1) / 2 > limit:
        found = f"{_names(asked[:1])} asks for {longest} minutes, more at each attempt: past the limit of {limit:.0f}"
        yield Finding("time", "warning", found, f"fewer retries in {profile.file}, or {remedy}")
    else:
        yield Finding("time", "ok", f"the longest job asks for {longest} minutes, the limit is {limit:.0f}")


def _minutes(text: str) -> float:
    seconds = slurm.duration(text)
    return math.inf if seconds is None else seconds / 60


# --- a compute node ---------------------------------------------------------------------------------------------------


def _probe(
    experiment: Experiment, place: Place, jobs: Sequence[Job], gpus: int, profile: Profile, wait: float
) -> Iterator[Finding]:
    """Send a job of a minute, and tell what it saw."""
    root = Path(experiment.results_dir)
    address = preflight.endpoint(experiment)
    address = address if address.startswith(("http://", "https://")) else ""
    try:
        with _folder(root) as folder:
            sent = time.time()
            try:
                job = _submit(place, gpus, _script(folder, root, address, gpus))
            except slurm.Silent as error:
                remedy = f"that is SLURM's word on account, partition and qos of {profile.file}"
                yield Finding("probe", "problem", f"a job is refused: {error}", remedy)
                return
            ended = _follow(job, wait)
            if ended.state != "COMPLETED":
                yield _unfinished(ended, folder, root, wait)
                return
            answer = _answer(folder, profile.number("latency-wait", 5))
            if answer is None:
                remedy = f"{root} must lie on a shared file system; or raise latency-wait in {profile.file}"
                yield Finding(
                    "shared files", "problem", f"what {ended.nodes} wrote to {root} does not appear here", remedy
                )
                return
            yield from _told(answer, ended.nodes, sent, gpus, experiment, jobs)
    except OSError as error:
        yield Finding("results", "problem", f"{root}: {error.strerror}", "results_dir: a place where you may write")


@contextmanager
def _folder(root: Path) -> Iterator[Path]:
    """Make a folder of the probe's own in the results tree, and leave nothing behind."""
    made = [each for each in (root, *root.parents) if not each.exists()]
    folder = root / f".doctor-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    (folder / "here").write_text(folder.name)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for each in made:
            if not any(each.iterdir()):
                each.rmdir()


def _script(folder: Path, root: Path, address: str, gpus: int) -> str:
    """Return the probe's script. Its exit status says what it lacks, for a node without our files can write none."""
    here, python = shlex.quote(str(folder)), shlex.quote(sys.executable)
    look = shlex.join([sys.executable, "-m", "trialign.doctor_probe", str(root), address, str(gpus)])
    return "\n".join([
        "#!/bin/sh",
        f"cd {shlex.quote(str(Path.cwd()))} || exit {NO_DIRECTORY}",
        f'[ "$(cat {here}/here)" = {folder.name} ] || exit {NO_RESULTS}',
        f"touch {here}/there || exit {READ_ONLY}",
        f"[ -x {python} ] || exit {NO_PYTHON}",
        f"srun -n1 --cpu-bind=q {look} >{here}/draft 2>{here}/errors || exit {NO_TRIALIGN}",
        f"mv {here}/draft {here}/answer\n",
    ])  # fmt: skip


def _submit(place: Place, gpus: int, script: str) -> str:
    """Submit the probe. Returns its job. Silent: with what sbatch said."""
    command = ["sbatch", "--parsable", "--job-name=trialign-doctor", "--output=/dev/null", "--export=ALL", "--ntasks=1"]
    command += [f"--time={PROBE_MINUTES}", f"--mem={PROBE_MB}", "--cpus-per-task=1"]
    options = {"account": place.account, "partition": place.partition, "qos": place.qos, "gpus": gpus}
    command += [f"--{name}={value}" for name, value in options.items() if value]
    done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=slurm.TIMEOUT, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["sbatch failed"]
        raise slurm.Silent(lines[-1].removeprefix("sbatch: error: "))
    return done.stdout.strip().split(";")[0]


def _follow(job: str, wait: float) -> slurm.Job:
    """Return the job once it has ended; one that does not start in time, or never will, is cancelled."""
    deadline, over = time.monotonic() + wait, False
    unknown = slurm.Job(job, "UNKNOWN", "", "", "", "")
    while True:
        found = slurm.queued().get(job, unknown)
        if found.state in slurm.WAITING:
            over = time.monotonic() > deadline or found.reason.startswith(slurm.STUCK)
        elif found.state in slurm.ALIVE:
            over = time.monotonic() > deadline + 60 * PROBE_MINUTES
        else:
            return found._replace(exit_code=slurm.exit_code(job))
        if over:
            slurm.ask("scancel", job)
            return found
        time.sleep(0.5)


def _unfinished(job: slurm.Job, folder: Path, root: Path, wait: float) -> Finding:
    """Say what the probe's end means."""
    if job.state in slurm.WAITING:
        stuck = job.reason.startswith(slurm.STUCK)
        found = f"a job of a minute {'cannot start' if stuck else f'did not start within {wait:.0f} s'}: {job.reason}"
        if stuck:
            return Finding("probe", "problem", found, "squeue(1), JOB REASON CODES; then another partition or account")
        return Finding("probe", "warning", found, "the cluster is busy, or its nodes are kept: again, with --wait 3600")
    error = _last_line(folder / "errors")
    lacks = {
        NO_DIRECTORY: ("working directory", f"{Path.cwd()} is not there on {job.nodes}", _SHARED),
        NO_RESULTS: ("shared files", f"a file of this machine in {root} is not seen on {job.nodes}", _SHARED),
        READ_ONLY: ("shared files", f"{root} cannot be written on {job.nodes}", _SHARED),
        NO_PYTHON: ("environment", f"{sys.executable} is not there on {job.nodes}", _ENVIRONMENT),
        NO_TRIALIGN: ("environment", f"trialign does not start on {job.nodes}: {error}", _ENVIRONMENT),
    }
    code = job.exit_code.partition(":")[0]
    if code.isdigit() and int(code) in lacks:
        check, found, remedy = lacks[int(code)]
        return Finding(check, "problem", found, remedy)
    found = f"job {job.id} on {job.nodes or 'no node'} ended {job.state} {job.exit_code}".rstrip()
    return Finding("probe", "problem", found, f"scontrol show job {job.id}; ask the cluster's support about that node")


_SHARED = (
    "put the repository and results_dir on a file system that compute nodes mount (scratch or work, not a local disk)"
)
_ENVIRONMENT = (
    "make the environment on a file system that compute nodes mount, with a Python that they have: make setup"
)


def _last_line(file: Path) -> str:
    """Return the last line of the probe's errors, less srun's own."""
    lines = file.read_text(errors="replace").strip().splitlines() if file.is_file() else []
    return ([line for line in lines if not line.startswith("srun:")] or lines or ["without a word"])[-1]


def _answer(folder: Path, seconds: float) -> Seen | None:
    """Return what the probe wrote, once it appears here; None where it does not in time."""
    end = time.monotonic() + seconds
    while True:
        os.listdir(folder)  # noqa: PTH208 makes NFS look again
        if (folder / "answer").is_file():
            return json.loads((folder / "answer").read_text())
        if time.monotonic() > end:
            return None
        time.sleep(0.2)


def _told(
    seen: Seen, node: str, sent: float, gpus: int, experiment: Experiment, jobs: Sequence[Job]
) -> Iterator[Finding]:
    """Say what the probe saw."""
    yield Finding(
        "shared files", "ok", f"{node} sees the working directory and {experiment.results_dir}, and writes there"
    )
    here = Seen(**{**seen, "version": version("trialign"), "package": str(Path(__file__).parent)})
    if (seen["version"], seen["package"]) == (here["version"], here["package"]):
        yield Finding("environment", "ok", f"{node} runs the same trialign {seen['version']}, {seen['package']}")
    else:
        found = (
            f"{node} runs trialign {seen['version']} of {seen['package']}, not {here['version']} of {here['package']}"
        )
        yield Finding("environment", "problem", found, _ENVIRONMENT)
    found = (
        f"{seen['tmp_mb'] / 1000:,.0f} GB free in {seen['tmp']} on {node}, {seen['results_mb'] / 1000:,.0f} in results"
    )
    small = seen["tmp_mb"] < TMP_MB
    yield Finding("scratch", "warning" if small else "ok", found, "set TMPDIR to a larger place" if small else "")
    away = max(sent - seen["time"], seen["time"] - time.time())
    if away > SKEW_SECONDS:
        remedy = "ask the cluster's support to set the clocks: Snakemake compares times of files"
        yield Finding("clocks", "warning", f"{node}'s clock is {away:.0f} s off this machine's", remedy)
    network = f"not reached ({seen['silence']}), nor needed there" if seen["silence"] else "reached or not asked for"
    yield Finding("network", "ok", f"the hub from {node}: {network}")
    if gpus:
        yield _gpu(seen, node, experiment, jobs)


def _gpu(seen: Seen, node: str, experiment: Experiment, jobs: Iterable[Job]) -> Finding:
    there, usable, hardware = seen["gpu_gib"], seen["torch_gpus"], experiment.hardware
    found = f"on {node} nvidia-smi lists {len(there)}, torch sees {', '.join(usable) or 'none'}"
    if not usable:
        remedy = (
            "a torch of the GPUs' kind and a driver for it (README: the CUDA build)"
            if there
            else "see nvidia-smi there"
        )
        return Finding("GPU", "problem", f"a job that asked for a GPU has none to use: {found}", remedy)
    memory = min(there, default=hardware.memory_gb)
    trained = sorted({job.wildcards["lineage"] for job in jobs if job.rule == "train"})
    if problems := known.memory_problems(experiment, trained, memory):
        return Finding("GPU", "problem", f"{found}, {memory:.0f} GiB each; {problems[0]}", "as it says, or larger GPUs")
    words = hardware.gpu.lower().split()
    if words and not any(words[0] in name.lower() for name in usable):
        remedy = "hardware in the config: estimates and time limits are for it"
        return Finding("GPU", "warning", f"{found}; the config's is {hardware.gpu}", remedy)
    return Finding("GPU", "ok", f"{found}, {memory:.0f} GiB each")


# --- for people -------------------------------------------------------------------------------------------------------


def show(finding: Finding, echo: Callable[[str], None]) -> None:
    """Print a finding, and its remedy below."""
    echo(f"{finding.level:<8} {finding.check}: {finding.found}")
    if finding.remedy:
        echo(f"{'':<8} -> {finding.remedy}")
