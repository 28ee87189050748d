"""A real SLURM cluster on this machine, for tests: its own folder, its own ports, gone afterwards.

Several virtual nodes are as many slurmd processes; their CPUs, memory and GPUs are fictional (GPUs are links to
/dev/null), so that SLURM schedules by the fiction and the kernel slices its time. Needs Debian's slurmctld, slurmd and
slurm-client, and slurmdbd, mariadb-server and munge for `accounting`. Runs as whoever calls it; reads and writes
nothing outside its folder, binds to the loopback address alone, and ends only what it started.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CLIENTS = ("sbatch", "srun", "squeue", "sacct", "sacctmgr", "scancel", "scontrol", "sinfo", "sshare")
DAEMONS = ("slurmctld", "slurmd", "sinfo")
ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db", "munged")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing(*, accounting: bool) -> list[str]:
    """Return the programs that a cluster needs and that are not installed."""
    wanted = DAEMONS + (ACCOUNTING if accounting else ())
    return [name for name in wanted if not shutil.which(name, path=SYSTEM_PATH)]


class Cluster:
    """A running cluster. Partitions over all nodes: `gpu` (requeues what `high` displaces), `scavenge` (cancels it)."""

    def __init__(self, root: Path, *, nodes: int, cpus: int, gpus: int, mem_mb: int, accounting: bool) -> None:
        self.root, self.nodes, self.accounting = root, nodes, accounting
        self.cpus, self.gpus, self.mem_mb = cpus, gpus, mem_mb
        self.conf = root / "etc/slurm.conf"
        self.crashes = 0  # of slurmctld
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._ports = _free_ports(nodes + 3)

    @property
    def env(self) -> dict[str, str]:
        """The environment to reach this cluster with. The clients are wrapped: jobs lose SLURM_CONF on their way."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return clean | {"SLURM_CONF": str(self.conf), "PATH": f"{self.root}/bin:{os.environ['PATH']}"}

    def run(self, *command: str, check: bool = True) -> str:
        """Run a client, at most 30 s; a slurmctld that crashed is started again first. Returns what it prints."""
        self._revive()
        done = subprocess.run(command, env=self.env, text=True, capture_output=True, timeout=30, check=False)
        if done.returncode and self._revive():
            done = subprocess.run(command, env=self.env, text=True, capture_output=True, timeout=30, check=False)
        assert not check or done.returncode == 0, (command, done.stderr)
        return done.stdout

    def jobs(self, *columns: str, states: str = "all") -> list[list[str]]:
        """Return the rows of squeue, in its format letters."""
        told = self.run("squeue", "--array", "-h", f"--states={states}", "--format", "|".join(columns))
        return [line.split("|") for line in told.splitlines()]

    def stop_node(self, name: str) -> None:
        """Let a node die: its slurmd and the jobs that run on it, as a power cut would."""
        daemon = self._daemons.pop(f"slurmd-{name}")
        jobs = self.run("squeue", "-h", "--array", "-t", "running,completing", "-w", name, "-o", "%A").split()
        for pid in (daemon.pid, *self._steps_of(jobs)):
            for child in _descendants(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        daemon.wait()
        self.run("scontrol", "update", f"nodename={name}", "state=down", "reason=test")

    def start_node(self, name: str) -> None:
        """Bring a node back."""
        self._start(f"slurmd-{name}", "slurmd", "-D", "-N", name)
        self.run("scontrol", "update", f"nodename={name}", "state=resume", check=False)
        at_work = {"idle", "mix", "alloc"}
        self._wait("node", lambda: self.run("sinfo", "-h", "-p", "gpu", "-n", name, "-o", "%t").strip() in at_work)

    def break_node(self, name: str) -> None:
        """Let a node fail at starting its next job."""
        (self.root / f"broken.{name}").touch()

    def mend_node(self, name: str) -> None:
        """Undo `break_node`; SLURM has drained the node meanwhile, if a job came to it."""
        (self.root / f"broken.{name}").unlink()
        self.run("scontrol", "update", f"nodename={name}", "state=resume", check=False)

    def stop_controller(self) -> None:
        """Let slurmctld end: clients get no answer until `start_controller`."""
        _end(self._daemons.pop("slurmctld"))

    def start_controller(self) -> None:
        """Start slurmctld."""
        self._start("slurmctld", "slurmctld", "-D")
        self._wait("slurmctld", lambda: "UP" in self.run("scontrol", "ping", check=False))

    def _revive(self) -> bool:
        """Start slurmctld again if it ended by itself, as a cluster's service manager would. Returns whether it had.

        That of 22.05.8 was seen to crash (a write through NULL) when a step starts on a node just brought back.
        """
        daemon = self._daemons.get("slurmctld")
        if daemon is None or daemon.poll() is None:
            return False
        self.crashes += 1
        del self._daemons["slurmctld"]  # `start_controller` asks it, by `run`
        self.start_controller()
        return True

    def up(self) -> None:
        """Start everything."""
        for folder in ("etc", "run", "log", "state", "dev", "bin", "db", "munge"):
            (self.root / folder).mkdir(parents=True, mode=0o711)
        for node in self.names():
            (self.root / "spool" / node).mkdir(parents=True)
        self._write_files()
        if self.accounting:
            self._start_accounting()
        self.start_controller()
        for node in self.names():
            self._start(f"slurmd-{node}", "slurmd", "-D", "-N", node)
        idle = f"{self.nodes}"
        self._wait("nodes", lambda: self.run("sinfo", "-h", "-p", "gpu", "-t", "idle", "-o", "%D").strip() == idle)

    def down(self) -> None:
        """Cancel all jobs and end what was started, in order."""
        if "slurmctld" in self._daemons:
            self.run("scancel", "--full", "--signal=KILL", f"--user={os.getuid()}", check=False)
            self.run("scancel", f"--user={os.getuid()}", check=False)
            with contextlib.suppress(AssertionError):
                self._wait("jobs to end", lambda: not self.jobs("%i", states="running,completing"), seconds=15)
        order = {"slurmctld": 0, "slurmd": 1, "slurmdbd": 2}
        for name in sorted(self._daemons, key=lambda name: order.get(name.split("-")[0], 3)):
            _end(self._daemons[name])
        for pid in self._processes():  # also of jobs that outlived a node, as tests let them
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def names(self) -> list[str]:
        """Return the names of the nodes."""
        return [f"node{number}" for number in range(1, self.nodes + 1)]

    def _start(self, name: str, *command: str) -> None:
        with (self.root / "log" / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                command, env=self.env | {"PATH": SYSTEM_PATH}, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                cwd=self.root / "log", start_new_session=True,
            )  # fmt: skip

    def _wait(self, what: str, ready: Callable[[], bool], seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                if ready():
                    return
            time.sleep(0.1)
        tails = [f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in self.root.glob("log/*")]
        raise AssertionError(f"timed out waiting for {what}\n" + "\n".join(tails))

    def _steps_of(self, jobs: Sequence[str]) -> Iterator[int]:
        """Yield the pids of this cluster's slurmstepd processes of some jobs (`slurmstepd: [21.0]`)."""
        for pid in self._processes():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                if command.startswith("slurmstepd") and any(f"[{job}." in command for job in jobs):
                    yield pid

    def _processes(self) -> Iterator[int]:
        """Yield the pids of all processes of this cluster: daemons, steps, what jobs started."""
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"SLURM_CONF={self.conf}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    yield int(folder.name)

    # --- files --------------------------------------------------------------------------------------------------------

    def _write_files(self) -> None:
        controller, _, _, *nodes = self._ports
        host = socket.gethostname().split(".")[0]
        root, me = self.root, _me()
        accounting = [
            "AccountingStorageType=accounting_storage/slurmdbd", "AccountingStorageHost=127.0.0.1",
            f"AccountingStoragePort={self._ports[1]}", "AccountingStoreFlags=job_comment",
            "AccountingStorageTRES=gres/gpu", "JobAcctGatherType=jobacct_gather/linux", "JobAcctGatherFrequency=1",
            "AuthType=auth/munge", "CredType=cred/munge", f"AuthInfo=socket={root}/munge/socket",
            # clients take the socket of the connection to slurmdbd from here, and hang without it
            f"AccountingStoragePass={root}/munge/socket",
        ]  # fmt: skip
        none = [
            "AccountingStorageType=accounting_storage/none", "JobAcctGatherType=jobacct_gather/none",
            "AuthType=auth/none", "CredType=cred/none",
        ]  # fmt: skip
        lines = [
            "ClusterName=test", f"SlurmctldHost={host}(127.0.0.1)", f"SlurmUser={me}", f"SlurmdUser={me}",
            f"SlurmctldPort={controller}", "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",
            f"StateSaveLocation={root}/state", f"SlurmdSpoolDir={root}/spool/%n",
            f"SlurmctldPidFile={root}/run/slurmctld", f"SlurmdPidFile={root}/run/slurmd-%n",
            f"SlurmctldLogFile={root}/log/slurmctld.log", f"SlurmdLogFile={root}/log/slurmd-%n.log",
            "MpiDefault=none", "ProctrackType=proctrack/linuxproc", "TaskPlugin=task/none",
            "SwitchType=switch/none", "SlurmdParameters=config_overrides", "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core_Memory", "SchedulerType=sched/backfill",
            "SchedulerParameters=bf_interval=1,sched_min_interval=50000,batch_sched_delay=0", "DefMemPerCPU=100",
            "MinJobAge=300", "KillWait=5", "CompleteWait=0", "SlurmdTimeout=10", "ReturnToService=2",
            "PreemptType=preempt/partition_prio", "PreemptMode=REQUEUE", "JobRequeue=1", "GresTypes=gpu",
            f"Prolog={root}/bin/prolog",
            *(accounting if self.accounting else none),
        ]  # fmt: skip
        gres = f" Gres=gpu:fake:{self.gpus}" if self.gpus else ""
        lines += [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} "
            f"RealMemory={self.mem_mb}{gres} State=UNKNOWN"
            for name, port in zip(self.names(), nodes, strict=True)
        ]
        times = "MaxTime=24:00:00 DefaultTime=10"
        lines += [
            f"PartitionName=gpu Nodes=ALL Default=YES {times} PriorityTier=1 PreemptMode=REQUEUE State=UP",
            f"PartitionName=scavenge Nodes=ALL {times} PriorityTier=1 PreemptMode=CANCEL State=UP",
            f"PartitionName=high Nodes=ALL {times} PriorityTier=10 PreemptMode=OFF State=UP",
        ]
        self.conf.write_text("\n".join(lines) + "\n")
        self.conf.with_name("cgroup.conf").write_text("CgroupAutomount=no\n")
        for number in range(self.gpus):  # a device file: with a plain one SLURM sets no CUDA_VISIBLE_DEVICES
            (root / f"dev/gpu{number}").symlink_to("/dev/null")
        files = f"NodeName=node[1-{self.nodes}] Name=gpu Type=fake File={root}/dev/gpu[0-{self.gpus - 1}]\n"
        self.conf.with_name("gres.conf").write_text(files if self.gpus else "")
        prolog = root / "bin/prolog"  # a node whose prolog fails is drained, and its job requeued and held
        prolog.write_text(f"#!/bin/sh\ntest ! -e {root}/broken.$SLURMD_NODENAME\n")
        prolog.chmod(0o755)
        for name in CLIENTS:
            wrapper = root / "bin" / name
            wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={self.conf} exec /usr/bin/{name} "$@"\n')
            wrapper.chmod(0o755)

    # --- accounting ---------------------------------------------------------------------------------------------------

    def _start_accounting(self) -> None:
        root, (_, port, database, *_rest) = self.root, self._ports
        key = root / "munge/key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        socket_file = root / "munge/socket"
        self._start(
            "munged", "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket_file}",
            f"--pid-file={root}/munge/pid", f"--log-file={root}/log/munged.log", f"--seed-file={root}/munge/seed",
        )  # fmt: skip
        self._wait("munged", lambda: bool(self.run("munge", "-S", str(socket_file), "-n")))
        user = ["--user=root"] if os.getuid() == 0 else []
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", *user, f"--datadir={root}/db/data", "--skip-test-db",
             "--auth-root-authentication-method=normal"],
            check=True, capture_output=True, env=os.environ | {"PATH": SYSTEM_PATH},
        )  # fmt: skip
        sql = f"{root}/db/socket"
        self._start(
            "mariadbd", "mariadbd", "--no-defaults", *user, f"--datadir={root}/db/data", f"--socket={sql}",
            f"--pid-file={root}/db/pid", "--bind-address=127.0.0.1", f"--port={database}",
            "--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0",
        )  # fmt: skip
        client = ["mariadb", "--no-defaults", f"--socket={sql}", "-u", "root", "-e"]
        self._wait("mariadbd", lambda: bool(self.run(*client, "select 1")))
        word = secrets.token_hex(12)
        grants = [f"create user slurm@'{host}' identified by '{word}'; grant all on slurm.* to slurm@'{host}';"
                  for host in ("127.0.0.1", "localhost")]  # fmt: skip
        self.run(*client, "create database slurm; " + " ".join(grants))
        conf = self.conf.with_name("slurmdbd.conf")
        lines = [
            "AuthType=auth/munge", f"AuthInfo=socket={socket_file}", "DbdHost=localhost", "DbdAddr=127.0.0.1",
            f"DbdPort={port}", f"SlurmUser={_me()}", f"PidFile={root}/run/slurmdbd",
            f"LogFile={root}/log/slurmdbd.log", "StorageType=accounting_storage/mysql", "StorageHost=127.0.0.1",
            f"StoragePort={database}", "StorageUser=slurm", f"StoragePass={word}", "StorageLoc=slurm",
            "CommunicationParameters=NoInAddrAny",
        ]  # fmt: skip
        conf.write_text("\n".join(lines) + "\n")
        conf.chmod(0o600)
        self._start("slurmdbd", "slurmdbd", "-D")
        self._wait("slurmdbd", lambda: self.run("sacctmgr", "-n", "list", "cluster") is not None)
        for command in (
            ["add", "cluster", "test"],
            ["add", "account", "lab", "cluster=test", "description=lab", "organization=lab"],
            ["add", "user", _me(), "account=lab", "cluster=test", "adminlevel=admin"],
        ):
            self.run("sacctmgr", "-i", *command, check=False)


@contextmanager
def running(
    root: Path, *, nodes: int = 4, cpus: int = 8, gpus: int = 4, mem_mb: int = 64_000, accounting: bool = False
) -> Iterator[Cluster]:
    """Bring a cluster up in `root`, which must be new, and take it down again."""
    cluster = Cluster(root, nodes=nodes, cpus=cpus, gpus=gpus, mem_mb=mem_mb, accounting=accounting)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


def _me() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _descendants(pid: int) -> Sequence[int]:
    """Return a process and all that came of it, the youngest first."""
    found, look = [pid], [pid]
    while look:
        current = look.pop()
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{current}/task/{current}/children").read_text().split()
            found += map(int, children)
            look += map(int, children)
    return found[::-1]


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(timeout=10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
