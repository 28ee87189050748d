"""What a training reports to besides its log: TensorBoard, where the study asks for it (`tracking` in the config).

In no recipe, for no result depends on it: a start of Snakemake writes it down (`study.stamp`), trainings read
it. A run that is resumed goes on in the same curves, and tracking that fails ends, not the training.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerControl, TrainerState
from transformers.integrations import TensorBoardCallback

from trialign import paths
from trialign.recipes import TrainRecipe
from trialign.steps import Step


def attach(trainer: Trainer, step: Step[TrainRecipe]) -> None:
    """Let a trainer report to what the study asks for, into <results>/tracking/<lineage>/seed<k>."""
    asked = step.shared / paths.TRACKING if step.shared else None
    if asked is None or not asked.is_file() or not (names := json.loads(asked.read_text())):
        return
    name = step.place.removeprefix("runs/")
    trainer.args.report_to, trainer.args.run_name = names, name
    try:
        trainer.add_callback(TensorBoard(asked.parents[1] / paths.TRACKED / name))
    except RuntimeError as error:  # the start of the study had the package, this machine does not
        _say(error)


class TensorBoard(TensorBoardCallback):
    """The Trainer's own callback, in a folder of the run's, whose later starts take back what they do again."""

    def __init__(self, folder: Path) -> None:
        """folder: of the event files. RuntimeError where TensorBoard is not installed."""
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder)  # the one way to say it, transformers 5.23
        super().__init__()
        self._ended = False

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Begin a file of events that replace those of earlier starts after the checkpoint."""
        self._try(self._begin, args, state, control, **kwargs)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report what the Trainer logs."""
        self._try(super().on_log, args, state, control, **kwargs)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Close the file; what is logged after that opens another."""
        self._try(super().on_train_end, args, state, control, **kwargs)

    def _begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.tb_writer = self._SummaryWriter(log_dir=self.logging_dir, purge_step=state.global_step + 1)
        super().on_train_begin(args, state, control, **kwargs)

    def _try(self, event: Callable[..., None], *arguments: Any, **keywords: Any) -> None:
        """Call a handler of an event; the first failure is said, and the last."""
        if self._ended:
            return
        try:
            event(*arguments, **keywords)
        except Exception as error:
            self._ended = True
            _say(error)


def _say(error: Exception) -> None:
    print(f"tracking ends here, the training goes on: {error}", file=sys.stderr, flush=True)
