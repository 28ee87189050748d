"""Everything that can go wrong happens to one small study on a real SLURM, and its tables are those of a quiet run.

The long version (more jobs, more of everything, other seeds) is in tests/soak; docs/reliability.md has its record.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.slurm.chaos import Chaos, overlaps, small_disk
from tests.slurm.cluster import Cluster
from tests.slurm.study import Study

EVENTS = {
    "scancel": 1, "time_limit": 1, "out_of_memory": 1, "preempt_requeue": 1, "preempt_cancel": 1, "node_down": 1,
    "kill_controller": 1, "second_controller": 1, "full_disk": 1,
}  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="a disk that can be filled takes root to mount")
@pytest.mark.timeout(900)
def test_a_study_in_chaos_ends_with_the_tables_of_a_quiet_one(
    plain: Cluster, tmp_path: Path, finished_study: Path
) -> None:
    spied = tmp_path / "spied"
    spied.mkdir()
    with small_disk(tmp_path / "disk", 200) as disk:
        results = disk / "results"
        spy = {
            "PYTHONPATH": str(Path(__file__).parent / "spy"),
            "TRIALIGN_SPY": str(spied),
            "TRIALIGN_SPY_ROOT": str(results),
            "TRIALIGN_CHECKPOINT_SECONDS": "0",
        }
        study = Study(tmp_path / "study", plain, results, more=spy)
        chaos = Chaos(study, seed=int(os.environ.get("TRIALIGN_CHAOS_SEED", "1")), disk=disk)
        try:
            assert chaos.run(EVENTS, 840) == 0, chaos.told()
        finally:
            study.end()
        quiet = {path.name: path.read_bytes() for path in finished_study.iterdir() if path.name in study.artifacts()}
        assert study.artifacts() == quiet and len(quiet) > 8
        assert not list((results / ".work").iterdir()), "a finished study has no work left lying about"
    assert chaos.done == EVENTS
    assert len(list(spied.iterdir())) > 20 and not overlaps(spied)
    assert not [row for row in plain.jobs("%Z", states="pending,running") if str(study.folder) in row]
