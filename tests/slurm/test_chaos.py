"""Everything that can go wrong happens to one small study on a real SLURM, and its tables are those of a quiet run.

The long version is in test_soak.py; docs/reliability.md has its record.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.slurm.chaos import survive
from tests.slurm.cluster import Cluster
from tests.slurm.study import TEST, artifacts

EVENTS = {
    "scancel": 1, "time_limit": 1, "out_of_memory": 1, "preempt_requeue": 1, "preempt_cancel": 1, "node_down": 1,
    "kill_controller": 1, "second_controller": 1, "full_disk": 1,
}  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="a disk that can be filled takes root to mount")
@pytest.mark.timeout(900)
def test_a_study_in_chaos_ends_with_the_tables_of_a_quiet_one(
    plain: Cluster, tmp_path: Path, finished_study: Path
) -> None:
    survive(plain, tmp_path, artifacts(finished_study), EVENTS, seed=1, configs=TEST, seconds=840)
