"""What a dry run of Snakemake knows, as one JSON object on stdout. `trialign plan` runs it; see `trialign.plan`.

    snakemake -n --debug-dag --quiet rules progress --logger trialign-plan --cores 1 -- all

JOB_INFO has no edges and nothing of jobs that need not run, so the DAG itself is read: `--debug-dag` makes Snakemake
9.27 send a DEBUG_DAG record for each job that it selects, with the job, and a job knows its DAG. It is read once
Snakemake has ended, when it is whole.
"""

from __future__ import annotations

import json
from logging import ERROR, LogRecord
from pathlib import Path
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent


class LogHandler(LogHandlerBase):
    """Collects errors and the DAG, and writes both when it is closed."""

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self.dag: Any = None
        self.errors: list[str] = []
        self.written = False

    def emit(self, record: LogRecord) -> None:
        """Keep what a record tells."""
        if record.levelno >= ERROR:
            self.errors.append(record.getMessage())
        elif getattr(record, "event", None) == LogEvent.DEBUG_DAG:
            self.dag = self.dag or getattr(getattr(record, "job", None), "dag", None)

    def close(self) -> None:
        """Write the object."""
        if not self.written:
            self.written = True
            whole = self.dag is not None and not self.errors
            print(json.dumps({"errors": self.errors, **(_dag(self.dag) if whole else {})}), flush=True)
        super().close()

    @property
    def writes_to_stream(self) -> bool:
        """In place of Snakemake's own output."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """No."""
        return False

    @property
    def has_filter(self) -> bool:
        """All records are read."""
        return True

    @property
    def has_formatter(self) -> bool:
        """Nothing is formatted."""
        return True

    @property
    def needs_rulegraph(self) -> bool:
        """No."""
        return False


def _dag(dag: Any) -> dict[str, Any]:
    workflow, needed = dag.workflow, set(dag.needrun_jobs())
    ids = {job: number for number, job in enumerate(dag.jobs)}
    return {
        "config": workflow.globals["config"],
        "nodes": workflow.nodes,
        "cores": workflow.cores,
        "jobs": [
            {
                "id": ids[job],
                "rule": job.rule.name,
                "wildcards": dict(job.wildcards_dict),
                "output": [str(file) for file in job.output],
                "log": [str(file) for file in job.log],
                "there": bool(job.output) and all(Path(file).exists() for file in job.output),
                "needed": job in needed,
                "reason": str(dag.reason(job)) if job in needed else "",
                "after": [ids[other] for other in dag.dependencies[job]],
                "threads": job.threads,
                "local": job.rule.norun or job.rule.name in workflow._localrules,  # under -n all say that they are
                "account": str(job.resources.get("slurm_account") or ""),
                "partition": str(job.resources.get("slurm_partition") or ""),
                "qos": str(job.resources.get("qos") or ""),
                "resources": {key: value for key, value in job.resources.items() if isinstance(value, int)},
            }
            for job in ids
        ],
    }
