"""The command line: what a person sees when a step fails, and that it can be repeated alone."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import command
from trialign.recipes import TrainRecipe
from trialign.settings import Training

RECIPE = TrainRecipe(
    method="tpo", params={"alpha": 1, "beta": 0.1}, view="triple", training=Training(precision="fp32"), seed=1
)


def step(root: Path, recipe: str, *inputs: str):
    places = ["--root", str(root), "--output", str(root / "runs/a/seed1"), "--log", str(root / "logs/a.log")]
    return command("trialign", "step", recipe, *inputs, *places)


def test_a_crash_shows_the_run_the_log_and_how_to_repeat_it(tmp_path: Path) -> None:
    tokens, parent = tmp_path / "tokens", tmp_path / "parent"
    for folder in (tokens, parent):
        folder.mkdir()
    (tokens / "train.parquet").write_text("this is no parquet file")
    done = step(tmp_path, RECIPE.canonical(), f"parent={parent}", f"tokens={tokens}")
    assert done.returncode == 1
    assert f"train {tmp_path}/runs/a/seed1 failed: " in done.stdout
    assert f"  log: {tmp_path}/logs/a.log\n" in done.stdout
    assert f"repeat it alone: sh {tmp_path}/logs/a.sh" in done.stdout
    log = tmp_path / "logs/a.log"
    assert "Traceback" in log.read_text() and "ArrowInvalid" in log.read_text()
    log.unlink()
    again = command("sh", f"{tmp_path}/logs/a.sh")
    assert again.returncode == 1 and "ArrowInvalid" in log.read_text()
    assert not (tmp_path / "runs").exists() and not (tmp_path / ".store").exists()


def test_a_users_mistake_is_one_line(tmp_path: Path) -> None:
    done = step(tmp_path, RECIPE.canonical(), f"parent={tmp_path}/nowhere", f"tokens={tmp_path}")
    assert done.returncode == 1
    assert f"failed: {tmp_path}/nowhere: this input does not exist" in done.stdout
    assert "Traceback" not in done.stdout


def test_what_is_not_a_recipe_is_refused(tmp_path: Path) -> None:
    done = step(tmp_path, '{"step":"trian"}')
    assert done.returncode == 2
    assert done.stdout.startswith("trialign: this is not a recipe: ") and "Traceback" not in done.stdout


def test_check_says_what_a_config_asks_for_and_what_is_wrong(tmp_path: Path) -> None:
    done = command("trialign", "check", "config/config.yaml")
    assert done.returncode == 0 and "paper: 12 artifacts, 52 lineages x 1 seeds" in done.stdout
    for words in (["check", "config/demo.yaml"], ["compare", "config/demo.yaml", "--table", "table1"]):
        done = command("trialign", *words)
        said = "trialign: config/demo.yaml: an overlay, no whole config: give config/config.yaml before it\n"
        assert done.returncode == 2 and done.stdout == said
    done = command("trialign", "compare", "config/config.yaml", "--table", "tabel9")
    assert done.returncode == 2 and "no artifact 'tabel9' (did you mean 'table9'?)" in done.stdout
    (tmp_path / "list.yaml").write_text("- not\n- a map\n")
    (tmp_path / "broken.yaml").write_text("name: [unclosed\n")
    for file in ("list.yaml", "broken.yaml", "absent.yaml"):
        done = command("trialign", "check", str(tmp_path / file))
        assert done.returncode == 2, file
        assert done.stdout.startswith(f"trialign: {tmp_path}/{file}: ") and done.stdout.count("\n") == 1, done.stdout
