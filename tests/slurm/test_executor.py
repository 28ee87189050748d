"""The executor on a real SLURM: whatever ends a job leads to another start or a clear failure; nothing waits forever.

The steps are shell lines that write down each of their starts, so that a second one that should not be is seen.
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import signal
from collections.abc import Callable
from importlib.metadata import version

import pytest

from snakemake_executor_plugin_trialign_slurm import Verdict, verdict
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import Workflow

Make = Callable[[Cluster, str], Workflow]

# Each start adds a line to starts/<name>; the first one does BODY, the others finish at once.
STEP = """
rule all:
    input: [f"out/{name}" for name in NAMES]

rule step:
    output: "out/{name}"
    log: "logs/{name}.log"
    RESOURCES
    shell:
        "mkdir -p starts; echo $SLURM_JOB_ID >> starts/{wildcards.name}; "
        "if [ $(wc -l < starts/{wildcards.name}) = 1 ]; then BODY; fi; echo done > {output}"
"""
HANG = "while [ ! -e go ]; do sleep 0.2; done"


def steps(names: list[str], body: str = HANG, resources: str = "") -> str:
    return f"NAMES = {names!r}\n" + STEP.replace("BODY", body).replace("RESOURCES", resources)


def starts(workflow: Workflow, name: str) -> int:
    path = workflow.folder / "starts" / name
    return len(path.read_text().split()) if path.exists() else 0


def running(workflow: Workflow, *names: str) -> Callable[[], bool]:
    return lambda: all(starts(workflow, name) for name in names)


def test_a_cancelled_job_counts_as_failed_and_is_tried_again(accounted: Cluster, workflow: Make) -> None:
    """Upstream reads `CANCELLED by 0` in sacct and waits forever."""
    flow = workflow(accounted, steps(["a", "b"]))
    controller = flow.start("--retries", "1")
    flow.wait_for("start", running(flow, "a", "b"))
    accounted.run("scancel", (flow.folder / "starts/a").read_text().strip())
    (flow.folder / "go").touch()
    assert flow.finish(controller) == 0
    assert (starts(flow, "a"), starts(flow, "b")) == (2, 1)
    assert "cancelled, not by this run" in flow.said()


def test_what_upstream_does_with_a_cancelled_job(accounted: Cluster, workflow: Make) -> None:
    """As long as this holds the subclass is needed; when it fails, the pinned plugin has mended it."""
    flow = workflow(accounted, steps(["a"]))
    controller = flow.start("--slurm-status-command", "sacct", executor="slurm")
    flow.wait_for("start", running(flow, "a"))
    accounted.run("scancel", (flow.folder / "starts/a").read_text().strip())
    with pytest.raises(AssertionError, match="it waits forever"):
        flow.finish(controller, 15)
    assert version("snakemake-executor-plugin-slurm") == "2.8.0"


@pytest.mark.parametrize(("partition", "restarts"), [("gpu", "requeued by SLURM"), ("scavenge", "starts anew")])
def test_a_preempted_job_starts_anew_and_loses_no_attempt(
    plain: Cluster, workflow: Make, partition: str, restarts: str
) -> None:
    flow = workflow(plain, steps(["a"], resources="resources: mem_mb=60000, runtime=5"))
    controller = flow.start("--retries", "0", partition=partition)
    flow.wait_for("start", running(flow, "a"))
    urgent = plain.run(
        "sbatch", "--parsable", "-p", "high", "-N4", "--mem=60000", "-t5", "-o", "/dev/null", "--wrap", "sleep 3"
    ).strip()
    if partition == "gpu":  # SLURM keeps what it requeued waiting for two minutes
        flow.wait_for("requeue", lambda: ["PENDING", "BeginTime"] in plain.jobs("%T", "%r"))
        plain.run("scontrol", "update", f"jobid={flow.jobs()[0]}", "starttime=now")
    assert flow.finish(controller) == 0
    assert starts(flow, "a") == 2
    assert ("starts anew: SLURM ended it: PREEMPTED" in flow.said()) == (restarts == "starts anew")
    assert urgent not in flow.jobs()


def test_a_lost_node_costs_a_start_and_spoils_no_later_submission(accounted: Cluster, workflow: Make) -> None:
    """Upstream puts `None assigned` into --exclude (issue 485)."""
    flow = workflow(accounted, steps(["a"], resources="resources: slurm_extra='-w node3'"))
    controller = flow.start("--retries", "0", "--trialign-slurm-no-requeue")
    flow.wait_for("start", running(flow, "a"))
    accounted.stop_node("node3")
    accounted.start_node("node3")
    assert flow.finish(controller) == 0
    assert starts(flow, "a") == 2
    assert "SLURM ended it: NODE_FAIL" in flow.said()


def test_a_job_that_its_node_could_not_start_is_not_left_held(plain: Cluster, workflow: Make) -> None:
    """SLURM requeues it and holds it (`launch failed requeued held`) until somebody comes."""
    flow = workflow(plain, steps(["a"], body="true"))
    for node in plain.names():
        plain.break_node(node)
    controller = flow.start("--retries", "0")
    flow.wait_for("failure", lambda: "SLURM ended it: NODE_FAIL" in flow.said())
    for node in plain.names():
        plain.mend_node(node)
    assert flow.finish(controller) == 0
    assert starts(flow, "a") == 1


def test_jobs_of_a_killed_controller_are_followed_by_the_next(plain: Cluster, workflow: Make) -> None:
    """SIGKILL of the controller; the next start finds its jobs, starts none of them twice and waits for their end."""
    names = ["a", "b", "c"]
    flow = workflow(plain, steps(names))
    first = flow.start()
    flow.wait_for("start", running(flow, *names))
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    second = flow.start("--nolock")
    flow.wait_for("adoption", lambda: flow.said().count("of an earlier start is RUNNING: following it") == 3)
    (flow.folder / "go").touch()
    assert flow.finish(second) == 0
    assert [starts(flow, name) for name in names] == [1, 1, 1]
    assert len(flow.jobs()) == 3


def test_a_job_that_no_ledger_has_is_cancelled_before_its_successor_starts(plain: Cluster, workflow: Make) -> None:
    """What a SIGKILL leaves between the submission and the entry in the ledger."""
    flow = workflow(plain, steps(["a"]))
    first = flow.start("--trialign-slurm-jobname-prefix", "study")
    flow.wait_for("start", running(flow, "a"))
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    (orphan,) = flow.jobs("running")
    for entry in (flow.folder / ".snakemake/trialign/jobs").iterdir():
        entry.unlink()
    second = flow.start("--nolock", "--trialign-slurm-jobname-prefix", "study")
    assert flow.finish(second) == 0
    assert f"SLURM job {orphan} is of a killed start that did not know it yet: cancelled" in flow.said()
    assert ["CANCELLED"] in [row[1:] for row in plain.jobs("%i", "%T") if row[0] == orphan]
    assert starts(flow, "a") == 2


def test_an_interrupt_cancels_what_runs_and_what_waits(plain: Cluster, workflow: Make) -> None:
    flow = workflow(plain, steps(["a", "b"]))
    controller = flow.start()
    flow.wait_for("start", running(flow, "a", "b"))
    controller.send_signal(signal.SIGINT)
    assert flow.finish(controller, 60) != 0
    flow.wait_for("end", lambda: not flow.jobs("pending,running,completing"))
    (flow.folder / "go").touch()
    assert flow.finish(flow.start()) == 0
    assert not list((flow.folder / ".snakemake/trialign/jobs").glob("*"))


def test_a_step_that_asks_for_it_starts_anew_and_loses_no_attempt(plain: Cluster, workflow: Make) -> None:
    ask = 'echo \'{{\\"reason\\": \\"out of time\\", \\"after\\": null}}\' > logs/{wildcards.name}.again; exit 1'
    flow = workflow(plain, steps(["a"], body=ask))
    assert flow.finish(flow.start("--retries", "0")) == 0, flow.said()
    assert starts(flow, "a") == 2 and "starts anew: out of time" in flow.said()


def test_a_step_that_another_job_holds_comes_after_it(plain: Cluster, workflow: Make) -> None:
    """It is submitted with a dependency, and holds no allocation meanwhile."""
    other = plain.run("sbatch", "--parsable", "-n1", "-t5", "-o", "/dev/null", "--wrap", "sleep 300").strip()
    ask = (
        f'echo \'{{{{\\"reason\\": \\"held\\", \\"after\\": \\"{other}\\"}}}}\' > logs/{{wildcards.name}}.again; exit 1'
    )
    flow = workflow(plain, steps(["a"], body=ask))
    controller = flow.start("--retries", "0")
    flow.wait_for("second job", lambda: ["PENDING", "Dependency"] in plain.jobs("%T", "%r"))
    plain.run("scancel", other)
    assert flow.finish(controller) == 0
    assert starts(flow, "a") == 2


def test_a_silent_scheduler_is_waited_for(plain: Cluster, workflow: Make) -> None:
    flow = workflow(plain, steps(["a"]))
    controller = flow.start()
    flow.wait_for("start", running(flow, "a"))
    plain.stop_controller()
    flow.wait_for("notice", lambda: "SLURM does not answer" in flow.said())
    plain.start_controller()
    (flow.folder / "go").touch()
    assert flow.finish(controller) == 0
    assert starts(flow, "a") == 1 and "SLURM answers again" in flow.said()


def test_alike_jobs_become_one_array_and_others_keep_their_resources(plain: Cluster, workflow: Make) -> None:
    """Upstream gives all tasks of an array the resources of the first, and waits until a whole rule is ready."""
    names = [f"small{k}" for k in range(5)] + ["large"]
    memory = "resources: mem_mb=lambda wildcards: 700 if wildcards.name == 'large' else 300"
    flow = workflow(plain, steps(names, body="true", resources=memory))
    controller = flow.start("--trialign-slurm-array-jobs", "all")
    assert flow.finish(controller) == 0, flow.said()
    assert all(starts(flow, name) == 1 for name in names)
    ids = flow.jobs()
    assert len(ids) == 6 and sum("_" in number for number in ids) == 5
    asked = {row[0]: row[1] for row in plain.jobs("%i", "%m") if row[0] in ids}
    assert asked[next(number for number in ids if "_" not in number)] == "700M"
    logs = sorted(path.name for path in (flow.folder / ".snakemake/slurm_logs/rule_step").glob("*_*.log"))
    assert logs == sorted(f"{number}.log" for number in ids if "_" in number)


def test_an_array_takes_more_commands_than_fit_into_an_argument(plain: Cluster, workflow: Make) -> None:
    """Upstream packs the commands of all tasks into one argument of at most 128 KiB, and the tasks fail beyond it."""
    names = [f"s{k}" for k in range(12)]
    flow = workflow(plain, steps(names, body="true"))
    noise = base64.b64encode(random.Random(1).randbytes(12_000)).decode()
    controller = flow.start("--trialign-slurm-array-jobs", "all", "--config", f"noise={noise}")
    assert flow.finish(controller) == 0, flow.said()
    assert [starts(flow, name) for name in names] == [1] * 12
    assert len({number.partition("_")[0] for number in flow.jobs()}) == 1


def test_the_tasks_of_an_array_leave_each_other_alone(plain: Cluster, workflow: Make) -> None:
    """Upstream runs each task inside the first one's job: one that fails deletes the output of the first, and one
    that is done fails for lack of it."""
    names = ["a", "b", "c"]
    flow = workflow(
        plain, steps(names, body="[ {wildcards.name} != a ] || " + HANG.replace("go", "go.{wildcards.name}"))
    )
    rules = (flow.folder / "Snakefile").read_text()
    (flow.folder / "Snakefile").write_text(rules.replace("echo done >", "[ {wildcards.name} != c ] && echo done >"))
    controller = flow.start("--trialign-slurm-array-jobs", "all", "--retries", "0")
    states = lambda: sorted(state for number, state in plain.jobs("%i", "%T") if number in flow.jobs())  # noqa: E731
    flow.wait_for("the end of b and c beside a that hangs", lambda: states() == ["COMPLETED", "FAILED", "RUNNING"])
    (flow.folder / "go.a").touch()
    assert flow.finish(controller) != 0
    assert sorted(path.name for path in (flow.folder / "out").iterdir()) == ["a", "b"]
    assert {number.partition("_")[0] for number in flow.jobs()} == {flow.jobs()[0].partition("_")[0]}


def test_a_failed_job_is_put_off_longer_each_time(plain: Cluster, workflow: Make) -> None:
    """What fails for a while, as on a full disk, must not cost a short step all its attempts."""
    rules = steps(["a"], body="exit 7").replace("echo $SLURM_JOB_ID", "date +%s").replace("= 1 ]", "-lt 3 ]")
    flow = workflow(plain, rules)
    assert flow.finish(flow.start("--retries", "2", "--trialign-slurm-retry-seconds", "3")) == 0
    first, second, third = map(int, (flow.folder / "starts/a").read_text().split())
    assert second - first >= 3 and third - second >= 6


def test_a_step_beside_the_controller_that_fails_is_put_off_too(plain: Cluster, workflow: Make) -> None:
    """And jobs of SLURM do not wait in their allocations."""
    recipe = json.dumps({"step": "tokenizer", "version": 1, "vocab_size": 64, "chat_template": "zephyr"})
    flow = workflow(
        plain,
        steps(["a"], body="echo ${{TRIALIGN_LOCAL_RETRY_SECONDS-none}} > told")
        + "localrules: here\n"
        + "rule here:\n    output: 'out/here'\n    params: recipe=" + repr(recipe) + "\n"
        + "    shell: 'date +%s >> here;'\n"
        + "        ' trialign step {params.recipe:q} corpus=missing --root r --output o --log l.log'\n",
    )  # fmt: skip
    options = ("--retries", "1", "--trialign-slurm-retry-seconds", "6", "--", "out/a", "out/here")
    assert flow.finish(flow.start(*options)) != 0
    first, second = map(int, (flow.folder / "here").read_text().split())
    assert second - first >= 6 and "missing: this input does not exist" in flow.said()
    assert (flow.folder / "told").read_text() == "none\n"


def test_a_failed_job_says_how_it_ended(plain: Cluster, workflow: Make) -> None:
    flow = workflow(plain, steps(["a"], body="exit 7"))
    assert flow.finish(flow.start("--retries", "0", "--logger", "trialign")) != 0
    assert re.search(r"✗ failed: step a: SLURM job \d+: FAILED, exit code 1:0", flow.said())


@pytest.mark.parametrize(
    ("state", "meaning"),
    [
        ("COMPLETED", Verdict.DONE), ("PENDING", Verdict.GOES_ON), ("COMPLETING", Verdict.GOES_ON),
        ("SUSPENDED", Verdict.GOES_ON), ("REQUEUED", Verdict.GOES_ON), ("PREEMPTED", Verdict.LOST),
        ("NODE_FAIL", Verdict.LOST), ("CANCELLED", Verdict.FAILED), ("TIMEOUT", Verdict.FAILED),
        ("OUT_OF_MEMORY", Verdict.FAILED), ("LAUNCH_FAILED", Verdict.FAILED), ("A_NEW_ONE", Verdict.FAILED),
    ],
)  # fmt: skip
def test_every_state_has_a_meaning(state: str, meaning: Verdict) -> None:
    assert verdict(state) is meaning
