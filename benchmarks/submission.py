"""What it costs the controller to submit 1,000 jobs that are ready, as arrays and one by one, to a real scratch SLURM.

    python -m benchmarks.submission

The partition is down, so that nothing starts: what is timed ends when the last job is in the queue. Needs Debian's
slurmctld, slurmd and slurm-client.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.slurm.cluster import Cluster, missing, running

JOBS = 1000
RULES = f"""
rule all:
    input: expand("out/{{k}}", k=range({JOBS}))

rule step:
    output: "out/{{k}}"
    resources: mem_mb=300, runtime=5
    shell: "echo > {{output}}"
"""


def submit(cluster: Cluster, folder: Path, arrays: bool) -> dict[str, float | str]:
    """Return wall and CPU seconds from the controller's start until all jobs are queued."""
    folder.mkdir()
    (folder / "Snakefile").write_text(RULES)
    command = [
        f"{Path(sys.executable).parent}/snakemake", "--executor", "trialign-slurm", "--jobs", str(JOBS),
        "--default-resources", "slurm_account=lab", "slurm_partition=gpu", "--max-jobs-per-timespan", "1000/10s",
        "--trialign-slurm-array-limit", "200", *(["--trialign-slurm-array-jobs", "all"] if arrays else []),
    ]  # fmt: skip
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with (folder / "log").open("w") as log:
        controller = subprocess.Popen(command, cwd=folder, env=cluster.env, stdout=log, stderr=log)
        while len(cluster.jobs("%i", states="pending")) < JOBS:
            assert controller.poll() is None, (folder / "log").read_text()[-3000:]
            time.sleep(0.5)
        wall = time.monotonic() - start
        controller.send_signal(signal.SIGINT)
        controller.wait(timeout=300)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cluster.run("scancel", f"--user={os.getuid()}")
    while cluster.jobs("%i", states="pending"):
        time.sleep(0.5)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"jobs": JOBS, "as": "arrays" if arrays else "single jobs", "wall_s": round(wall, 1), "cpu_s": round(cpu, 1)}


def main() -> None:
    """Print both, a line of JSON each."""
    if lacks := missing(accounting=False):
        print(f"skipped: SLURM is not installed: {', '.join(lacks)}", file=sys.stderr)
        return
    with TemporaryDirectory() as folder, running(Path(folder) / "cluster") as cluster:
        cluster.run("scontrol", "update", "partitionname=gpu", "state=down")
        for arrays in (True, False):
            print(json.dumps(submit(cluster, Path(folder) / str(arrays), arrays)), flush=True)


if __name__ == "__main__":
    main()
