"""Doctor on a real SLURM: what is planted is found, with its remedy; a cluster without a fault passes, of either kind.

Most plants look at one finding in this process, on a plan that Snakemake made once; what comes after it is not run.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY, command
from tests.slurm.cluster import Cluster
from trialign import doctor, plan
from trialign.doctor import Finding
from trialign.plan import Dag, Job

CONFIGS = ["config/demo.yaml", "config/test.yaml"]
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens


def profile(folder: Path, *, account: str = "lab", partition: str = "gpu", **options: object) -> Path:
    """Write the shipped profile as a user fills it in; `a_b` is the option `a-b`."""
    told = yaml.safe_load((REPOSITORY / "profiles/slurm/config.yaml").read_text())
    told["default-resources"] = {"slurm_account": account, "slurm_partition": partition}
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(told | {k.replace("_", "-"): v for k, v in options.items()}))
    return folder


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Dag:
    """The test config's plan, as Snakemake's dry run of it under the shipped profile has it."""
    folder = tmp_path_factory.mktemp("planned")
    return plan.dry_run(["all"], CONFIGS, str(profile(folder / "profile")), [f"results_dir={folder}/results"])


class Doctor:
    """Examines a cluster in this process, with what a test planted."""

    def __init__(self, dag: Dag, folder: Path) -> None:
        self.dag, self.options, self.folder, self.wait = dag, {}, folder, 60.0
        self.root(folder / "results")

    def root(self, place: Path) -> None:
        """Plan for another results tree."""
        experiment = self.dag.experiment.model_copy(update={"results_dir": str(place)})
        self.dag = replace(self.dag, experiment=experiment)

    def jobs(self, change: Callable[[Job], Job]) -> None:
        """Change the jobs of the plan that a cluster runs."""
        self.dag = replace(self.dag, jobs=tuple(job if job.local else change(job) for job in self.dag.jobs))

    def asks(self, **resources: int) -> None:
        """Let training ask for other resources."""
        self.jobs(lambda job: replace(job, resources={**job.resources, **resources}) if job.rule == "train" else job)

    def findings(self, cluster: Cluster) -> Generator[Finding, None, None]:
        """Examine."""
        os.environ.update(cluster.env)
        told = doctor.read_profile(str(profile(self.folder / "profile", **self.options)))
        return doctor.examine(self.dag, told, self.wait)

    def finds(self, cluster: Cluster, check: str, level: str, found: str, remedy: str) -> None:
        """Examine until the first finding of `check` that is not ok, and look at it."""
        seen: list[Finding] = []
        with closing(self.findings(cluster)) as findings:
            while not seen or seen[-1].check != check or seen[-1].level == "ok":
                finding = next(findings, None)
                assert finding, [(each.check, each.level, each.found) for each in seen]
                seen.append(finding)
        assert seen[-1].level == level and re.search(found, seen[-1].found), seen[-1]
        assert re.search(remedy, seen[-1].remedy), seen[-1]
        assert not (self.folder / "results").exists()


@pytest.fixture
def examined(planned: Dag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    monkeypatch.chdir(REPOSITORY)
    return Doctor(planned, tmp_path)


@contextmanager
def updated(cluster: Cluster, what: str, planted: str, undone: str) -> Iterator[None]:
    cluster.run("scontrol", "update", what, *planted.split())
    try:
        yield
    finally:
        cluster.run("scontrol", "update", what, *undone.split())


@contextmanager
def restarted(cluster: Cluster, line: str) -> Iterator[None]:
    """A line more in slurm.conf: slurmctld reads such ones as it starts."""
    before = cluster.conf.read_text()
    try:
        for text in (f"{before}{line}\n", None):
            cluster.stop_controller()
            cluster.conf.write_text(text or before)
            cluster.start_controller()
            if text:
                yield
    finally:
        cluster.conf.write_text(before)


def waited(so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + 20
    while not so():
        assert time.monotonic() < end
        time.sleep(0.1)


# --- nothing is wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "accounted"])
def test_a_cluster_without_a_fault_passes(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    cluster: Cluster = request.getfixturevalue(kind)
    os.environ.update(cluster.env)
    folder = profile(tmp_path / "profile", trialign_slurm_efficiency_report=kind == "accounted")
    configs = [word for file in CONFIGS for word in ("--configfile", file)]
    done = command(
        "trialign", "doctor", "--slurm", "--profile", str(folder), *configs, "--config",
        f"results_dir={tmp_path}/results", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    told = json.loads(done.stdout)
    assert {each["level"] for each in told} == {"ok"}, told
    checks = {each["check"] for each in told}
    assert {"partition", "nodes", "GPUs", "time", "shared files", "environment", "scratch", "network"} <= checks
    assert sorted(path.name for path in tmp_path.iterdir()) == ["profile"]


def test_the_report_without_accounting_and_the_line_that_asks_for_it(plain: Cluster, examined: Doctor) -> None:
    examined.finds(plain, "accounting", "warning", "nothing to read", "efficiency-report: false in .*config.yaml")


# --- this machine -----------------------------------------------------------------------------------------------------


def test_commands_that_are_not_there(plain: Cluster, examined: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cluster, "env", {"PATH": "/nowhere"})
    examined.finds(plain, "commands", "problem", "sbatch, srun, squeue, scancel, scontrol", "module load slurm")


def test_a_scheduler_that_does_not_answer(plain: Cluster, examined: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=9", plain.conf.read_text())
    conf = examined.folder / "slurm.conf"
    conf.write_text(f"{dead}MessageTimeout=2\n")
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    monkeypatch.setattr(Cluster, "env", {"PATH": path, "SLURM_CONF": str(conf)})
    examined.finds(plain, "reachable", "problem", "SLURM does not answer", "scontrol ping.*SLURM_CONF")


def test_a_plugin_other_than_the_pinned_one(plain: Cluster, examined: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    installed, plugin = doctor.version, "snakemake-executor-plugin-slurm"
    monkeypatch.setattr(doctor, "version", lambda name: "2.7.0" if name == plugin else installed(name))
    examined.finds(plain, "versions", "problem", f"{plugin} 2.7.0 .pinned==2.8.0", "requirements.lock")


def test_a_limit_on_cpu_time_and_the_target_for_a_transfer_node(plain: Cluster, examined: Doctor) -> None:
    before = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (36_000, before[1]))
    try:
        examined.finds(plain, "login limits", "warning", "600 minutes of CPU time", "snakemake downloads")
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, before)


def test_a_hub_that_is_not_reached(plain: Cluster, examined: Doctor) -> None:
    fetch = Job(-1, "fetch", {"source": "arc"}, ("arc",), (), False, True, "", (), 1, {}, local=True)
    experiment = examined.dag.experiment.model_copy(update={"mirror": NOWHERE})
    examined.dag = replace(examined.dag, experiment=experiment, jobs=(fetch, *examined.dag.jobs))
    examined.finds(plain, "downloads", "problem", f"{NOWHERE} does not answer", "snakemake downloads")


def test_a_disk_that_is_too_small(plain: Cluster, examined: Doctor) -> None:
    examined.asks(disk_mb=10**9)
    examined.finds(plain, "disk", "problem", r"3,000,\d+ GB stay", "results_dir")


# --- account, numbers -------------------------------------------------------------------------------------------------


def test_an_account_that_is_not_yours(accounted: Cluster, examined: Doctor) -> None:
    """Where the cluster enforces accounts it is a problem, else jobs run and are charged to a name that nobody has."""
    examined.jobs(lambda job: replace(job, account="lap"))
    words = "'lap' is not an account of yours .did you mean 'lab'", "one of yours .lab"
    examined.finds(accounted, "account", "warning", *words)
    with restarted(accounted, "AccountingStorageEnforce=associations"):
        examined.finds(accounted, "account", "problem", *words)
        examined.jobs(lambda job: replace(job, account="lab"))
        assert all(finding.level == "ok" for finding in examined.findings(accounted))


def test_more_jobs_than_one_may_submit(accounted: Cluster, examined: Doctor) -> None:
    change = ["sacctmgr", "-i", "modify", "user", "where", "account=lab", "set"]
    accounted.run(*change, "maxsubmitjobs=10")
    try:
        examined.finds(accounted, "jobs", "problem", "`jobs` is 200, and you may have 10", "jobs: 10 in")
    finally:
        accounted.run(*change, "maxsubmitjobs=-1")


def test_arrays_that_are_too_long(plain: Cluster, examined: Doctor) -> None:
    examined.options = {"trialign_slurm_array_limit": 5000}
    examined.finds(plain, "arrays", "problem", "up to 5000 tasks, this cluster takes 1000", "array-limit: 1000")


def test_states_asked_for_too_seldom(plain: Cluster, examined: Doctor) -> None:
    examined.options = {"trialign_slurm_init_seconds_before_status_checks": 400}
    examined.finds(plain, "job age", "problem", "forgets a job 300 s after its end", "status-checks: 100")


# --- a partition and its nodes ----------------------------------------------------------------------------------------


def test_a_partition_that_is_not_there(plain: Cluster, examined: Doctor) -> None:
    examined.jobs(lambda job: replace(job, partition="gpus"))
    examined.finds(
        plain, "partition", "problem", "no partition 'gpus' .did you mean 'gpu'", "one of gpu, scavenge, high"
    )


def test_a_partition_that_is_down(plain: Cluster, examined: Doctor) -> None:
    examined.jobs(lambda job: replace(job, partition="scavenge"))
    with updated(plain, "partitionname=scavenge", "state=down", "state=up"):
        examined.finds(plain, "partition", "problem", "scavenge: DOWN", "another partition")


def test_nodes_that_are_drained(plain: Cluster, examined: Doctor) -> None:
    with updated(plain, "nodename=node[1-4]", "state=drain reason=planted", "state=resume"):
        examined.finds(plain, "partition", "problem", "0 of 4 nodes usable", "sinfo -R -p gpu")
    waited(lambda: plain.run("scontrol", "--oneliner", "show", "node").count("State=IDLE ") == 4)


@pytest.mark.parametrize(
    ("asked", "check", "found", "remedy"),
    [
        ({"gpu": 8}, "GPUs", r"train \S+ 1 .and \d more. asks for 8 .gpus., a node of gpu has 4", "train.gpus"),
        ({"mem_mb": 90_000}, "memory", "asks for 90000 .mem_mb., a node of gpu has 64000", "mem_mb in the config"),
        ({"mem_mb": 40_000}, "retries", "a last attempt .* asks for 100000 MB", "fewer retries"),
        ({"runtime": 3000}, "time", "asks for 3000 minutes, the limit is 1440", "goes on from its checkpoint"),
    ],
)
def test_jobs_that_ask_for_too_much(
    plain: Cluster, examined: Doctor, asked: dict[str, int], check: str, found: str, remedy: str
) -> None:
    examined.asks(**asked)
    examined.finds(plain, check, "warning" if check == "retries" else "problem", found, remedy)


def test_a_partition_with_a_short_limit(plain: Cluster, examined: Doctor) -> None:
    with updated(plain, "partitionname=gpu", "maxtime=8", "maxtime=24:00:00"):
        examined.finds(plain, "time", "problem", "asks for 10 minutes, the limit is 8", "runtime: 8 in the config")


@pytest.mark.parametrize(
    ("gres", "kinds"),
    [
        ("(null)", {}), ("gpu:4", {"": 4}), ("gpu", {"": 1}), ("gpu:fake:4(S:0-1)", {"fake": 4}),
        ("gpu:a100:4,gpu:v100:2,mps:200", {"a100": 4, "v100": 2}), ("craynetwork:4,gpu:3g.20gb:2", {"3g.20gb": 2}),
    ],
)  # fmt: skip
def test_gpus_of_a_node(gres: str, kinds: dict[str, int]) -> None:
    assert doctor.gpu_kinds({"Gres": gres}) == kinds


# --- a compute node ---------------------------------------------------------------------------------------------------


@pytest.fixture
def here_only(tmp_path: Path) -> Iterator[Path]:
    """A folder of this process alone: a path through its open files, which a compute node does not have."""
    (tmp_path / "local").mkdir()
    opened = os.open(tmp_path / "local", os.O_RDONLY)
    high = os.dup2(opened, 213)
    yield Path(f"/proc/self/fd/{high}")
    os.close(high)
    os.close(opened)


def test_results_that_a_compute_node_does_not_see(plain: Cluster, examined: Doctor, here_only: Path) -> None:
    examined.root(here_only / "results")
    examined.finds(plain, "shared files", "problem", "is not seen on node1", "a file system that compute nodes mount")
    assert not list(here_only.iterdir())


def test_results_that_cannot_be_written(plain: Cluster, examined: Doctor) -> None:
    examined.root(Path("/proc/nowhere"))
    examined.finds(plain, "results", "problem", "/proc/nowhere", "where you may write")


def test_an_environment_that_a_compute_node_does_not_see(
    plain: Cluster, examined: Doctor, here_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(here_only / "bin/python"))
    examined.finds(plain, "environment", "problem", "bin/python is not there on node1", "make setup")


def test_a_python_that_has_no_trialign(plain: Cluster, examined: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    examined.finds(plain, "environment", "problem", "does not start on node1: .*trialign", "make setup")


def test_a_gpu_that_is_given_and_not_usable(plain: Cluster, examined: Doctor) -> None:
    examined.asks(gpu=1)
    examined.finds(plain, "GPU", "problem", "asked for a GPU has none to use: on node1", "nvidia-smi there")


def test_a_job_that_does_not_start_in_time_is_cancelled(plain: Cluster, examined: Doctor) -> None:
    full = plain.run(
        "sbatch", "--parsable", "-N4", "--exclusive", "-t5", "-o", "/dev/null", "--wrap", "sleep 300"
    ).strip()
    try:
        waited(lambda: [full, "RUNNING"] in plain.jobs("%i", "%T"))
        examined.wait = 2
        examined.finds(plain, "probe", "warning", "did not start within 2 s: (Resources|Priority)", "--wait 3600")
    finally:
        plain.run("scancel", full)
    assert ["trialign-doctor", "PENDING"] not in plain.jobs("%j", "%T")
