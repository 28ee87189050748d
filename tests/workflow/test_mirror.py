"""The paper's own config from a hub to every table: the real path, with tiny checkpoints behind the hub's addresses."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from safetensors import safe_open

from tests.conftest import command
from tests.hub_room import serving
from tests.mirror_room import build

TABLES = [f"table{k}" for k in range(1, 10)]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of `snakemake all` on the paper's config, its sources behind a hub on this machine."""
    root = tmp_path_factory.mktemp("mirror")
    build(root / "hub")
    pinned = {"openbmb/UltraFeedback": "40b436560ca83a8dba36114c22ab3c66e43f6d5e"}
    with serving(root / "hub", commits=pinned) as hub:
        overlay = root / "here.yaml"
        sources = {
            name: {"kind": "local", "path": str(root / "hub" / name), "base": None, "files": None}
            for name in ("bigbench", "mt_bench")
        }
        overlay.write_text(
            yaml.safe_dump(
                {
                    "lock": str(root / "lock.json"),
                    "mirror": hub.url,
                    "sources": sources,
                }
            )
        )
        files = ["config/config.yaml", "tests/workflow/mirror.yaml", str(overlay)]
        locked = command("trialign", "lock", *files)
        assert locked.returncode == 0, locked.stdout
        done = command(
            "snakemake", "--workflow-profile", "none", "--configfile", *files[1:], "--config",
            f"results_dir={root}/results", "--cores", "2", "--nolock", "--", "all", timeout=3000,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-5000:]
        asked = {path.partition("?")[0] for _, path, _ in hub.requests}
    assert not any("train_gen" in path or path.endswith(".bin") for path in asked), "only what is included is fetched"
    return root / "results"


@pytest.mark.parametrize("name", TABLES)
def test_every_table_of_the_paper_is_whole(study: Path, name: str) -> None:
    table = pd.read_csv(study / f"{name}.csv")
    assert len(table) and table.notna().all().all()


def test_every_lineage_of_the_paper_but_the_grids_is_there(study: Path) -> None:
    found = set(pd.read_csv(study / "results.csv")["lineage"])
    assert len(found) >= 30
    assert {"mistral+sft+tpo@alpha=1@beta=0.1", "phi2+sft+orpo@beta=0.1", "mistral+sft10k+kto@beta=0.1"} <= found


def test_models_say_where_they_came_from_and_how_they_were_trained(study: Path) -> None:
    base = json.loads((study / "data/source/mistral_base/run.json").read_text())
    assert len(base["recipe"]["commit"]) == 40 and base["facts"]["verified"] == base["facts"]["files"] > 4
    trained = json.loads((study / "runs/phi2+sft/seed42/run.json").read_text())
    assert trained["recipe"]["training"]["packing"] == 2048 and trained["recipe"]["training"]["precision"] == "bf16"
    assert trained["facts"]["trainer"]["bf16"] is True
    with safe_open(study / "runs/phi2+sft/seed42/model/model.safetensors", "pt") as weights:
        assert {str(weights.get_tensor(name).dtype) for name in weights.keys()} == {"torch.bfloat16"}  # noqa: SIM118
