"""The whole study on a cluster: a copy of the workflow's files in a folder of its own, run by the command users type.

The one thing that a user fills in, account and partition of the profile, is filled in.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import SNAKEMAKE, Workflow

PARTS = ("Snakefile", "workflow", "config", "profiles", "paper", "environment.yml")
TEST = ("config/demo.yaml", "config/test.yaml")
DEMO = ("config/demo.yaml",)


class Study(Workflow):
    """A study in `folder`, which must not exist; `results`: its results tree. `more`: added to the environment."""

    def __init__(
        self, folder: Path, cluster: Cluster, results: Path, configs: tuple[str, ...] = TEST, partition: str = "gpu",
        more: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(folder, cluster)
        self.results, self.configs, self.more = results, configs, more or {}
        folder.mkdir()
        for part in PARTS:
            source = REPOSITORY / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / part)
        (folder / "slurm").symlink_to("profiles/slurm")
        profile = folder / "profiles/slurm/config.yaml"
        text = profile.read_text()
        for name, value in (("slurm_account", "lab"), ("slurm_partition", partition)):
            assert f'{name}: ""' in text
            text = text.replace(f'{name}: ""', f"{name}: {value}")
        profile.write_text(text)

    @property
    def env(self) -> dict[str, str]:
        """The environment of controllers, with what was added."""
        return super().env | self.more

    def command(self, executor: str, partition: str) -> list[str]:
        """Return `snakemake --profile slurm`, with this study's config and less patience than a cluster's."""
        return [
            SNAKEMAKE, "--profile", "slurm", "--configfile", *self.configs, "--config", f"results_dir={self.results}",
            f"--{executor}-init-seconds-before-status-checks", "1", "--latency-wait", "10",
            f"--{executor}-retry-seconds", "4",
            "--max-jobs-per-timespan", "100/1s",
        ]  # fmt: skip


def artifacts(results: Path) -> dict[str, bytes]:
    """Return what a study found: every table, and the numbers behind figures. The pages tell times, too."""
    return {
        path.name: path.read_bytes()
        for pattern in ("*.csv", "*.md", "*.tex", "*.html")
        for path in sorted(results.glob(pattern))
        if path.name not in ("report.html", "index.html")
    }
