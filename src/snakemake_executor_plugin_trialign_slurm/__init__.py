"""SLURM for studies that run unattended for days: `executor: trialign-slurm`.

One subclass of the executor of snakemake-executor-plugin-slurm 2.8.0, which submits; what it makes of a job's state is
replaced, and each change has its reason here (docs/slurm.md tells users the same):

- A job ended by scancel, preempted for good or unknown to SLURM was waited for forever: `verdict` knows every state of
  squeue(1), and a job that neither squeue nor sacct knows any more has failed.
- A requeued job of a lost node put `None assigned` into --exclude, upon which every later submission failed (upstream
  issue 485): no node is excluded here, SLURM itself keeps jobs off nodes that are down.
- A preempted job, one of a lost node or held by SLURM since its node could not start it, and a step that asks for
  another start (out of time with a checkpoint, out of GPU memory with a smaller micro-batch, its work held by another
  job) are submitted anew without counting as an attempt.
- Jobs of a killed controller lived on beside their duplicates: they are found in the ledger and followed on; one that
  was being submitted at that moment, which no ledger has, is cancelled.
- Array tasks all got the resources of the first and waited for the whole rule to be ready: alike jobs that are ready
  together form an array.
- Each task of an array ran a Snakemake of the first task's job, which ran the task's own: a task that failed deleted
  the first one's output, and one that was done waited for it. The script of an array of ours has a command for each
  task, so that it runs its own and nothing else; nor do all commands have to fit into one argument of 128 KiB.
- A job of several nodes with GPUs got them unevenly (3 + 1 of 4 on 2 nodes), and its step was refused, which asked for
  all of them on one node: as many on each node, and the step is told of its own node's alone.
- A failed job was submitted again at once: a disk that is full for a minute cost short steps all their attempts. Each
  further start is put off twice as long as the one before, by SLURM's own --begin. Snakemake starts a step that runs
  beside it again at once, too: such a step waits before it says that it failed.
- The account was checked by a call of sacctmgr for every job, and guessed wrongly where there was none: taken as given.
- Ctrl-C cancelled what was followed at that moment, not what was being submitted: cancelled by name as well, in chunks.
"""

import json
import os
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Optional

from snakemake_executor_plugin_slurm import Executor as SlurmExecutor
from snakemake_executor_plugin_slurm import ExecutorSettings as SlurmSettings
from snakemake_executor_plugin_slurm import common_settings
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string
from snakemake_executor_plugin_slurm.validation import validate_or_get_slurm_job_id, validate_slurm_extra
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface
from snakemake_interface_executor_plugins.utils import format_cli_arg

from trialign import controller, ledger, paths, slurm

__all__ = ["Executor", "ExecutorSettings", "common_settings"]

LOST_LIMIT = 20  # how often a job may lose its node or be preempted before it counts as failed
SUMMARY_SECONDS = 60.0
CANCEL_CHUNK = 500
SCRIPT_BYTES = 3 << 20  # of an array's script: slurm.conf(5), max_script_size, is 4 MB where nobody set it
# squeue(1), "JOB REASON CODES": what SLURM holds after a node could not start it.
_HELD_BY_SLURM = ("launch failed requeued held", "launch_failed_requeued_held")
# Resources that sbatch does not see: jobs that differ in them alone are alike.
_OURS = {"tmpdir", "seconds", "gpu_minutes", "disk_mb", "scratch_mb", "judge_tokens_in", "judge_tokens_out"}


@dataclass
class ExecutorSettings(SlurmSettings):
    """The settings of the SLURM plugin, under `--trialign-slurm-...`; states are asked of squeue."""

    status_command: Optional[str] = field(  # noqa: UP045 Snakemake's parser knows no other spelling
        default="squeue",
        metadata={"help": "Kept for the plugin underneath; states come from squeue, then sacct.", "env_var": False},
    )
    retry_seconds: int = field(
        default=60,
        metadata={"help": "How long a failed job is put off (s); twice as long after each further failure."},
    )


class Verdict(Enum):
    """What a job's state means for the one who follows it."""

    GOES_ON = "goes on"
    DONE = "done"
    LOST = "lost"
    FAILED = "failed"


def verdict(state: str) -> Verdict:
    """Return what a state of squeue(1) or sacct(1) means; what is not known there has failed."""
    if state == "COMPLETED":
        return Verdict.DONE
    if state in slurm.ALIVE or state in slurm.WAITING:
        return Verdict.GOES_ON
    return Verdict.LOST if state in slurm.LOST else Verdict.FAILED


class Executor(SlurmExecutor):
    """Submits jobs as the SLURM plugin does, and follows them to an end."""

    def __post_init__(self, test_mode: bool = False) -> None:
        """Take the settings."""
        super().__post_init__(test_mode)
        settings = self.workflow.executor_settings
        if settings.efficiency_report and not slurm.has_accounting():
            self.logger.info("no efficiency report: it needs SLURM's accounting, which this cluster does not keep")
            settings.efficiency_report = False
        os.environ[slurm.LOCAL_RETRY_SECONDS] = str(settings.retry_seconds)
        self._losses: Counter[str] = Counter()
        self._after: dict[str, str] = {}  # output -> the job that has to end before its next start
        self._failures: Counter[str] = Counter()
        self._put_off: dict[str, int] = {}  # output -> the seconds until its next start
        self._followed: set[str] = set()
        self._looked_for_orphans = False
        self._warned: set[tuple[str, str]] = set()
        self._summary, self._summary_at, self._silent_since = "", 0.0, None

    # --- submission ---------------------------------------------------------------------------------------------------

    def run_jobs(self, jobs: list[JobExecutorInterface]) -> None:
        """Follow what runs already; submit the rest, jobs that ask for the same as one array."""
        if not self._looked_for_orphans:
            self._looked_for_orphans = True
            self._cancel_orphans()
        running = self._queued() if any(_entry(job) for job in jobs) else {}
        for alike in self._alike([job for job in jobs if not self._adopt(job, running or {})]):
            if len(alike) > 1:
                self._submit_array_jobs(alike)
            else:
                self._submit_job(alike[0])

    def _cancel_orphans(self) -> None:
        """Cancel this folder's jobs that no ledger has: their controller was killed before it knew their number.

        They lose nothing but time: a step goes on where it was. Not while another controller is at work here.
        """
        prefix = f"{self.workflow.executor_settings.jobname_prefix}_"
        if prefix == "_" or controller.others_at_work():
            return
        known, here = {entry.job for entry in ledger.entries()}, os.path.realpath(self.workflow.workdir_init)
        for job in (self._queued() or {}).values():
            alive = verdict(job.state) is Verdict.GOES_ON and job.id not in known
            if alive and job.name.startswith(prefix) and os.path.realpath(job.folder) == here:
                self.logger.warning(f"SLURM job {job.id} is of a killed start that did not know it yet: cancelled")
                self._scancel(job.id)

    def _adopt(self, job: JobExecutorInterface, running: dict[str, slurm.Job]) -> bool:
        """Follow the job that an earlier controller submitted for the same output, if SLURM still has it."""
        entry = _entry(job)
        found = running.get(entry.job) if entry else None
        if entry is None or found is None or verdict(found.state) is not Verdict.GOES_ON:
            return False
        self.run_job_pre(job)
        self.logger.info(f"{_name(job)}: SLURM job {entry.job} of an earlier start is {found.state}: following it")
        self._report_job_submission_threadsafe(SubmittedJobInfo(job, external_jobid=entry.job, aux={}))
        return True

    def _alike(self, jobs: Iterable[JobExecutorInterface]) -> Iterator[list[JobExecutorInterface]]:
        """Group jobs of one rule that ask for the same resources; what cannot be a task of an array comes alone."""
        groups: dict[Any, list[JobExecutorInterface]] = {}
        for job in jobs:
            own_start = _output(job) in self._after or _output(job) in self._put_off
            in_array = not job.is_group() and self.array_jobs & {"all", job.name} and not own_start
            asked = sorted((name, str(value)) for name, value in job.resources.items() if name not in _OURS)
            groups.setdefault((job.name, tuple(asked)) if in_array else id(job), []).append(job)
        for group in groups.values():
            yield from self._arrays(group)

    def _arrays(self, group: list[JobExecutorInterface]) -> Iterator[list[JobExecutorInterface]]:
        """Cut alike jobs into arrays that keep to the limits of tasks and of their script's bytes."""
        array, size = [], 0
        for job in group:
            command = len(self.format_job_exec(job)) if len(group) > 1 else 0
            if array and (len(array) == self.max_array_size or size + command > SCRIPT_BYTES):
                yield array
                array, size = [], 0
            array, size = [*array, job], size + command
        yield array

    def run_array_jobs(self, jobs: list[JobExecutorInterface]) -> None:
        """Submit alike jobs as one array."""
        folder = self.slurm_logdir / f"rule_{jobs[0].name}"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            number = self._sbatch(jobs, folder / "%A_%a.log")
        except (OSError, subprocess.SubprocessError, WorkflowError) as error:
            told = (getattr(error, "stderr", None) or str(error)).strip()
            for job in jobs:
                self._report_job_error_threadsafe(SubmittedJobInfo(job), f"sbatch refused its array: {told}")
            return
        for task, job in enumerate(jobs, start=1):
            log = folder / f"{number}_{task}.log"
            info = SubmittedJobInfo(job, external_jobid=f"{number}_{task}", aux={"slurm_logfile": log})
            self._report_job_submission_threadsafe(info)
        self.logger.info(f"{len(jobs)} jobs of rule {jobs[0].name} have been submitted as SLURM array {number}")

    def _sbatch(self, jobs: list[JobExecutorInterface], log: Path) -> str:
        """Submit an array of jobs that ask for the same, each task with a command of its own. Returns its number."""
        for job in jobs:
            validate_slurm_extra(job)
        asked = {
            "run_uuid": self.run_uuid,
            "slurm_logfile": log,
            "comment_str": f"rule_{jobs[0].name}",
            "account": next(self.get_account_arg(jobs[0])),
            "partition": self.get_partition_arg(jobs[0]),
            "workdir": self.workflow.workdir_init,
        }
        call = get_submit_command(jobs[0], asked, settings=self.workflow.executor_settings) + set_gres_string(jobs[0])
        cases = [f"{task})\n{self.format_job_exec(job)}\n;;" for task, job in enumerate(jobs, start=1)]
        script = "\n".join(["#!/bin/sh", 'case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac", ""])
        done = subprocess.run(
            f"{call} --array=1-{len(jobs)}", shell=True, input=script, text=True, capture_output=True, check=True
        )
        return validate_or_get_slurm_job_id(done.stdout.strip().split(";")[0], done.stdout)

    def get_account_arg(self, job: JobExecutorInterface) -> Iterator[str]:
        """Yield the account's argument: as it is given, for sbatch refuses a wrong one itself, and never guessed."""
        account = job.resources.get("slurm_account")
        yield f" -A {shlex.quote(str(account))}" if account else ""

    def get_partition_arg(self, job: JobExecutorInterface) -> str:
        """Return the partition's argument, those of when it may start, and that of GPUs on each of several nodes."""
        after, each = self._after.pop(_output(job), None), _gpus_on_each_node(job)
        seconds = self._put_off.pop(_output(job), 0)
        model = job.resources.get("gpu_model")
        return (
            super().get_partition_arg(job)
            + (f" --dependency=afterany:{after}" if after else "")
            + (f" --begin=now+{seconds}" if seconds else "")
            + (f" --gpus-per-node={f'{shlex.quote(model)}:' if model else ''}{each}" if each else "")
        )

    def format_job_exec(self, job: JobExecutorInterface) -> str:
        """Return what the job runs: a Snakemake of one node, for its srun starts one process there (-n1)."""
        called = f"unset {slurm.LOCAL_RETRY_SECONDS}; {super().format_job_exec(job)}"
        each = _gpus_on_each_node(job)
        if each is None:
            return called
        # a second --set-resources replaces the first
        given = self.workflow.resource_settings._parsed_overwrite_resources
        kept = [f"{rule}:{name}={value.raw}" for rule, those in given.items() for name, value in those.items()]
        own = [f"{job.rule.name}:nodes=1", f"{job.rule.name}:gpu={each}"]
        return f"{called} {format_cli_arg('--set-resources', [*kept, *own], base64_encode=True)}"

    def _report_job_submission_threadsafe(self, job_info: SubmittedJobInfo) -> None:
        job, number = job_info.job, job_info.external_jobid
        if not job.is_group():
            ledger.write(ledger.Entry(number, _name(job), str((job.log or [""])[0]), _output(job)))
        self._followed.add(number)
        super()._report_job_submission_threadsafe(job_info)

    # --- following ----------------------------------------------------------------------------------------------------

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncGenerator[SubmittedJobInfo]:
        """Ask SLURM for all jobs at once, report those that ended, yield those that go on."""
        self.next_seconds_between_status_checks = self.workflow.executor_settings.init_seconds_before_status_checks
        if not active_jobs:
            return
        async with self.status_rate_limiter:
            known = self._queued()
        if known is None:
            for info in active_jobs:
                yield info
            return
        forgotten = [info.external_jobid for info in active_jobs if info.external_jobid not in known]
        known |= slurm.accounted(forgotten) if forgotten else {}
        self._say_how_it_stands([known[info.external_jobid] for info in active_jobs if info.external_jobid in known])
        for info in active_jobs:
            found = known.get(info.external_jobid)
            if found and found.reason in _HELD_BY_SLURM:
                self._scancel(info.external_jobid)
                self._end(info, found._replace(state="NODE_FAIL"))
            elif found and verdict(found.state) is Verdict.GOES_ON:
                yield info
            else:
                self._end(info, found)

    def _queued(self) -> dict[str, slurm.Job] | None:
        """Return this user's jobs; None while SLURM does not answer, which is said, and waited for."""
        try:
            known = slurm.queued()
        except slurm.Silent as error:
            if self._silent_since is None:
                self._silent_since = time.monotonic()
                self.logger.warning(f"SLURM does not answer ({error}); its jobs go on, asking again until it does")
            return None
        if self._silent_since is not None:
            self.logger.warning(f"SLURM answers again, after {time.monotonic() - self._silent_since:.0f} s")
            self._silent_since = None
        return known

    def _end(self, info: SubmittedJobInfo, found: slurm.Job | None) -> None:
        """Report a job that ended, or start it anew."""
        output = _output(info.job)
        self._followed.discard(info.external_jobid)
        ended = verdict(found.state) if found else Verdict.FAILED
        if ended is Verdict.DONE:
            ledger.forget(output)
            self._remove_slurm_log(info)
            self.report_job_success(info)
            return
        again = _take_again(info.job)
        if again is None and ended is Verdict.LOST and self._losses[output] < LOST_LIMIT:
            self._losses[output] += 1
            again = {"reason": f"SLURM ended it: {found.state}"}
        if again is None:
            ledger.forget(output)
            self._put_off[output] = self.workflow.executor_settings.retry_seconds << self._failures[output]
            self._failures[output] += 1
            log = info.aux.get("slurm_logfile")
            message = f"SLURM job {info.external_jobid}: {_why(info, found)}. "
            self.report_job_error(info, msg=message, aux_logs=[str(log)] if log else [])
            return
        if again.get("after"):
            self._after[output] = again["after"]
        self.logger.info(f"{_name(info.job)}: SLURM job {info.external_jobid} starts anew: {again['reason']}")
        self._job_submission_executor.submit(self.run_job, info.job)

    def _remove_slurm_log(self, info: SubmittedJobInfo) -> None:
        log = info.aux.get("slurm_logfile")
        if log and not self.workflow.executor_settings.keep_successful_logs:
            Path(log).unlink(missing_ok=True)

    def _say_how_it_stands(self, jobs: list[slurm.Job]) -> None:
        """Say what runs and why the rest waits, when that has changed and not too often; what is stuck, at once."""
        for job in jobs:
            if (
                job.state in slurm.WAITING
                and job.reason.startswith(slurm.STUCK)
                and (job.id, job.reason) not in self._warned
            ):
                self._warned.add((job.id, job.reason))
                self.logger.warning(
                    f"SLURM job {job.id} will not start by itself ({job.reason}): see `scontrol show job {job.id}`; "
                    f"mend it there (scontrol release, scontrol update), or scancel it: it is then submitted anew"
                )
        running = sum(job.state in slurm.ALIVE for job in jobs)
        waiting = Counter(job.reason for job in jobs if job.state in slurm.WAITING)
        reasons = ", ".join(f"{number} {reason}" for reason, number in waiting.most_common())
        summary = f"SLURM: {running} running" + (f", {waiting.total()} waiting ({reasons})" if waiting else "")
        if summary != self._summary and time.monotonic() - self._summary_at >= SUMMARY_SECONDS:
            self._summary, self._summary_at = summary, time.monotonic()
            self.logger.info(summary)

    # --- the end ------------------------------------------------------------------------------------------------------

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancel what is followed, and what was being submitted: it bears the name of this run."""
        self._job_submission_executor.shutdown(wait=True, cancel_futures=True)
        numbers = sorted(self._followed | {info.external_jobid for info in active_jobs if info.external_jobid})
        self._scancel("--me", "--name", self.run_uuid)
        for start in range(0, len(numbers), CANCEL_CHUNK):
            self._scancel(*numbers[start : start + CANCEL_CHUNK])
        for entry in ledger.entries():
            if entry.job in numbers:
                ledger.forget(entry.output)

    def _scancel(self, *arguments: str) -> None:
        try:
            done = subprocess.run(["scancel", *arguments], capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            self.logger.warning(f"jobs could not be cancelled ({error}); look for them with squeue --me")
            return
        complaints = [line for line in done.stderr.splitlines() if "Invalid job id" not in line]
        if done.returncode and complaints:
            self.logger.warning(f"scancel: {complaints[-1]}; look for what is left with squeue --me")


def _take_again(job: JobExecutorInterface) -> dict[str, Any] | None:
    """Return, once, what a step left that is to be started again: `reason`, and the job to come `after`, if any."""
    if job.is_group() or not job.log:
        return None
    marker = Path(job.log[0]).with_suffix(paths.AGAIN)
    if not marker.is_file():
        return None
    told = json.loads(marker.read_text())
    marker.unlink()
    return told


def _why(info: SubmittedJobInfo, found: slurm.Job | None) -> str:
    """Say in words how a job failed."""
    if found is None:
        return "SLURM does not know it any more, and keeps no account of it"
    code = found.exit_code or slurm.exit_code(info.external_jobid)
    asked = info.job.resources
    match found.state:
        case "TIMEOUT" | "DEADLINE":
            return f"{found.state}: its {asked.get('runtime')} minutes were not enough"
        case "OUT_OF_MEMORY":
            return f"OUT_OF_MEMORY: its {asked.get('mem_mb')} MB were not enough"
        case "FAILED" if code.endswith(":9") or code.startswith("137"):
            return f"killed (signal 9), for lack of memory most likely: it had {asked.get('mem_mb')} MB"
        case "CANCELLED":
            return "cancelled, not by this run"
    return f"{found.state}" + (f", exit code {code}" if code else "") + (f", on {found.nodes}" if found.nodes else "")


def _gpus_on_each_node(job: JobExecutorInterface) -> int | None:
    """Return the GPUs on each node of a job of several nodes; None for any other."""
    if job.is_group() or not job.resources.get("gpu") or (job.resources.get("nodes") or 1) == 1:
        return None
    return job.resources.gpu // job.resources.nodes


def _entry(job: JobExecutorInterface) -> ledger.Entry | None:
    return None if job.is_group() else ledger.of(_output(job))


def _output(job: JobExecutorInterface) -> str:
    """Return what tells a job from all others: the first of its outputs, or a group's own name."""
    return str(job.output[0]) if not job.is_group() else f"group {job.jobid}"


def _name(job: JobExecutorInterface) -> str:
    return job.name if job.is_group() else " ".join([job.rule.name, *map(str, job.wildcards)])
