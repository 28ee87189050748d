"""Training curves of many runs on one page: a panel for each quantity that their logs hold, a line for each run.

Both engines log under names of their own, so what is drawn is a quantity with one meaning:

- margin: how far the chosen response leads, as the method's loss takes it before beta (log-probabilities of TPO and
  CPO, ratios to the parent's of DPO and KTO, both per token for IPO and SimPO, log odds for ORPO). TRL logs it times
  beta, but for ORPO, whose log odds it logs too, and IPO, of which it logs another one: that is left out.
- accuracy: the share of prompts whose chosen response leads, by the same measure.
- log-probability of a response, summed over its tokens, a mean over prompts: of the reference, the chosen, the
  rejected one. In the view (reference, rejected) the chosen response is the reference. TRL logs means per token for
  ORPO, SimPO and TPO-L, and none of the reference for TPO: those are left out.

A panel that no run has is left out. A line whose run diverged ends where the run did, with a cross.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from trialign.errors import UserError
from trialign.lineage import Lineage
from trialign.paths import parse_suite
from trialign.recipes import CurvesRecipe
from trialign.reporting import figures
from trialign.steps import Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOG = "log.jsonl"
QUANTITIES = (
    "loss", "margin", "accuracy", "reference log-prob", "chosen log-prob",
    "rejected log-prob", "gradient norm", "learning rate",
)  # fmt: skip
SCHEDULE = "learning rate"  # has no noise to smooth
COLUMNS = ["lineage", "seed", "split", "step", "quantity", "value"]
_PER_TOKEN = ("orpo", "simpo")  # whose log-probabilities TRL averages over tokens
_WIDE = 10.0  # largest over smallest value, from which a positive quantity is drawn on a logarithmic scale

Logged = Mapping[str, tuple[str, float]]


def curves(step: Step[CurvesRecipe]) -> dict[str, Any]:
    """Write `<name>.png`, `.svg`, `.pdf` and the `.csv` behind them: every step, nothing smoothed.

    Inputs: `run`, the `run.json` of every run. UserError where the log beside one is missing.
    """
    recipe = step.recipe
    records = {_identity(path): path for path in step.inputs["run"]}
    points = pd.DataFrame(
        [
            (row.lineage, seed, *point)
            for row in recipe.rows
            for seed in recipe.seeds
            for point in read(records[row.lineage, seed])
        ],
        columns=COLUMNS,
    )
    ended = {key for key, path in records.items() if json.loads(path.read_text())["facts"]["final"] is None}
    figures.write(step, points, lambda: draw(recipe, points, ended))
    drawn = [quantity for quantity in QUANTITIES if quantity in set(points["quantity"])]
    return {"runs": len(records), "diverged": len(ended), "quantities": drawn}


def _identity(record: Path) -> tuple[str, int]:
    identity = parse_suite(record)
    return identity.lineage, identity.seed


def read(record: Path) -> Iterator[tuple[str, int, str, float]]:
    """Yield (split, step, quantity, value) of a run's log, split `train` or `eval`. record: the run's `run.json`."""
    log = record.with_name(LOG)
    if not log.is_file():
        raise UserError(f"{log} is missing: restore it, or train the run again (snakemake --forcerun, its run.json)")
    names = logged(json.loads(record.read_text())["recipe"])
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        split = "train" if "loss" in entry else "eval" if "eval_loss" in entry else None
        prefix = "eval_" if split == "eval" else ""
        for quantity, (name, factor) in names.items():
            if split and prefix + name in entry:
                yield split, entry["step"], quantity, float(entry[prefix + name]) * factor  # "nan" is one, too


def logged(recipe: Mapping[str, Any]) -> Logged:
    """Return quantity -> (name in the log, what its values are multiplied by), for a train recipe as JSON."""
    trl, method, params = recipe["training"]["engine"] == "trl", recipe["method"], recipe["params"]
    chosen = "reference" if recipe["view"] == "reference-rejected" else "chosen"
    names = {"loss": ("loss", 1.0), "gradient norm": ("grad_norm", 1.0), "learning rate": ("learning_rate", 1.0)}
    if not (trl and (method in _PER_TOKEN or params.get("length_normalised"))):
        names["reference log-prob"] = ("logps/reference", 1.0)
        names["rejected log-prob"] = ("logps/rejected", 1.0)
        names[f"{chosen} log-prob"] = ("logps/chosen", 1.0)
    if not trl:
        return names | {"margin": ("margins", 1.0), "accuracy": ("accuracies", 1.0)}
    if method == "ipo":
        return names
    margin = ("log_odds_chosen", 1.0) if method == "orpo" else ("rewards/margins", 1 / params.get("beta", 1))
    return names | {"margin": margin, "accuracy": ("rewards/accuracies", 1.0)}


def draw(recipe: CurvesRecipe, points: pd.DataFrame, ended: set[tuple[str, int]]) -> Figure:
    """Return the figure. ended: the runs, as (lineage, seed), that diverged."""
    from matplotlib.lines import Line2D

    there = [quantity for quantity in QUANTITIES if quantity in set(points["quantity"])]
    sheet = figures.sheet(len(there), 1.6)
    styles = dict(zip((row.lineage for row in recipe.rows), figures.lines(len(recipe.rows)), strict=True))
    for place, (panel, quantity) in enumerate(zip(sheet.panels, there, strict=True)):
        _panel(
            panel, points[points["quantity"] == quantity], styles, ended, 1 if quantity == SCHEDULE else recipe.smooth
        )
        figures.name_panel(panel, quantity)
        if sheet.is_lowest(place):
            panel.set_xlabel("step")
    handles = [Line2D([], [], color=colour, linestyle=dash, linewidth=1.1) for colour, dash in styles.values()]
    figures.legend(sheet.figure, handles, [row.label for row in recipe.rows])
    bases = {Lineage.parse(row.lineage).base for row in recipe.rows}
    figures.footer(
        sheet.figure,
        f"All trained from {' and '.join(sorted(bases))}.",
        f"Lines: means of the last {recipe.smooth} steps." if recipe.smooth > 1 else "",
        "Dots: evaluation rows, at the end." if (points["split"] == "eval").any() else "",
        "Crosses: training diverged." if ended else "",
        "Losses and margins are each method's own.",
        recipe.notice,
    )
    return sheet.figure


def _panel(
    panel: Axes, points: pd.DataFrame, styles: Mapping[str, Any], ended: set[tuple[str, int]], smooth: int
) -> None:
    """Draw one panel: a line for each run over its finite values, and a dot where it was evaluated."""
    finite = points[points["value"].map(math.isfinite)]
    for (lineage, seed, split), line in finite.groupby(["lineage", "seed", "split"], sort=False):
        colour, dash = styles[lineage]
        if split == "eval":
            panel.plot(line["step"], line["value"], "o", color=colour, markersize=3.2, markeredgecolor="white",
                       markeredgewidth=0.4, zorder=3, clip_on=False)  # fmt: skip
            continue
        values = line["value"].rolling(smooth, min_periods=1).mean()
        panel.plot(line["step"], values, color=colour, linestyle=dash, linewidth=0.9)
        if (lineage, seed) in ended:
            panel.plot(line["step"].iloc[-1:], values.iloc[-1:], "x", color=colour, markersize=5, markeredgewidth=1.3)
    if len(finite) and finite["value"].min() > 0 and finite["value"].max() > _WIDE * finite["value"].min():
        _set_logarithmic(panel)
    panel.margins(x=0.03)


def _set_logarithmic(panel: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers at it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_locator(NullLocator())
