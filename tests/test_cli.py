"""The command line: what a person sees when a step fails, and that it can be repeated alone."""

from __future__ import annotations

import json
import sys
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


def test_a_step_that_asks_for_another_start_leaves_a_word_beside_its_log(tmp_path: Path) -> None:
    """The executor reads it: such an end costs no attempt. The next start takes it away, and adds to the log."""
    marker, log = tmp_path / "logs/a.again", tmp_path / "logs/a.log"
    script = (
        "import sys; from trialign import cli, steps, errors\n"
        "def again(*_): raise errors.Again('out of time at step 3 of 9, with a checkpoint', after='17')\n"
        "steps.run = again; sys.argv = ['trialign', *sys.argv[1:]]; cli.main()"
    )
    places = ["--root", str(tmp_path), "--output", str(tmp_path / "runs/a/seed1"), "--log", str(log)]
    done = command(sys.executable, "-c", script, "step", RECIPE.canonical(), *places)
    assert done.returncode == 1
    assert json.loads(marker.read_text()) == {"reason": "out of time at step 3 of 9, with a checkpoint", "after": "17"}
    assert "start it again, it goes on from there" in done.stdout and "Traceback" not in log.read_text()
    step(tmp_path, RECIPE.canonical(), f"parent={tmp_path}/nowhere", f"tokens={tmp_path}")
    assert not marker.exists()
    assert "to be started again: out of time" in log.read_text() and "this input does not exist" in log.read_text()


def test_a_full_disk_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    script = (
        "import sys; from trialign import cli, steps\n"
        "def full(*_): raise OSError(28, 'No space left on device', 'weights')\n"
        "steps._run = full; sys.argv = ['trialign', *sys.argv[1:]]; cli.main()"
    )
    places = ["--root", str(tmp_path), "--output", str(tmp_path / "a"), "--log", str(tmp_path / "a.log")]
    done = command(sys.executable, "-c", script, "step", RECIPE.canonical(), *places)
    assert done.returncode == 1
    assert f"{tmp_path}: no space left on the disk, or in its quota; nothing that was finished is lost" in done.stdout


def test_what_is_not_a_recipe_is_refused(tmp_path: Path) -> None:
    done = step(tmp_path, '{"step":"trian"}')
    assert done.returncode == 2
    assert done.stdout.startswith("trialign: this is not a recipe: ") and "Traceback" not in done.stdout


def test_check_says_what_a_config_asks_for_and_what_is_wrong(tmp_path: Path) -> None:
    done = command("trialign", "check", "config/config.yaml")
    assert done.returncode == 0 and "paper: 23 artifacts, 84 lineages x 1 seed\n" in done.stdout
    done = command("trialign", "check", "config/demo.yaml")
    said = "trialign: config/demo.yaml: an overlay, no whole config: give config/config.yaml before it\n"
    assert done.returncode == 2 and done.stdout == said
    (tmp_path / "list.yaml").write_text("- not\n- a map\n")
    (tmp_path / "broken.yaml").write_text("name: [unclosed\n")
    for file in ("list.yaml", "broken.yaml", "absent.yaml"):
        done = command("trialign", "check", str(tmp_path / file))
        assert done.returncode == 2, file
        assert done.stdout.startswith(f"trialign: {tmp_path}/{file}: ") and done.stdout.count("\n") == 1, done.stdout
