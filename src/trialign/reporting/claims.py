"""The step that gives each claim of a paper its verdict: `<name>.csv`, a page, Markdown and LaTeX.

What was measured comes from `claims_measured`, what the paper's own tables say from `claims_published`. Where an
experiment is not compared with the paper, no number of the paper is in any of the files.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from trialign import pages
from trialign.claims import GRID, Claim
from trialign.recipes import ClaimsRecipe
from trialign.reporting.claims_measured import VERDICTS, Finding, Verdicts
from trialign.reporting.claims_published import FOLLOWS, FOLLOWS_NOT, NOT_STATED, Check, Published
from trialign.reporting.claims_read import Claimed, read
from trialign.reporting.gather import Measurements
from trialign.reporting.render import escape_markdown, escape_tex
from trialign.steps import Step

COLUMNS = (
    "id", "claim", "quote", "source", "kind", "a", "b", "column", "stated", "unit", "published", "published_verdict",
    "published_note", "difference", "low", "high", "p", "p_holm", "n", "verdict", "note",
)  # fmt: skip
DASH = "–"
LEGEND = (
    "Difference: of the comparison that decides, with its 95% interval; p: of no difference, Holm-corrected for the "
    "claim's comparisons; n: items. Supported: the whole interval is on the claim's side, and p is at most 0.05; "
    "contradicted: wholly on the other, likewise. %: of the highest score. Nothing is corrected for the number of "
    "claims, and other artifacts correct for comparisons of their own."
)
LEGEND_ONE_SEED = "One seed: intervals and p are over the items, and say of these weights, of no other training."
LEGEND_SEEDS = "Intervals and p are over items and seeds."
LEGEND_PUBLISHED = "Tables give: what the cells of the paper's own tables give for the claim."


def claims(step: Step[ClaimsRecipe]) -> dict[str, Any]:
    """Write the claims with their verdicts. Inputs: `results`, `claims`, and `published` where it
    is compared. UserError where compared runs have no item in common."""
    recipe, claimed = step.recipe, read(step)
    verdicts = Verdicts(claimed, Measurements.of(step))
    published = Published(claimed, claimed.published) if claimed.published is not None else None
    rows = [
        _row(claimed, claim, verdicts.finding(claim), published.check(claim) if published else Check())
        for claim in claimed.claims
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)
    frame.to_csv(step.out / f"{recipe.name}.csv", index=False)
    compared = published is not None
    told = Told(compared, _counts(claimed.claims, frame, compared), _legend(recipe, compared))
    for suffix, text in (("md", _markdown), ("tex", _tex), ("html", _html)):
        (step.out / f"{recipe.name}.{suffix}").write_text(text(frame, recipe, told), encoding="utf-8")
    return {"claims": len(frame), **Counter(frame["verdict"])}


def _row(claimed: Claimed, claim: Claim, found: Finding, check: Check) -> dict[str, Any]:
    compared = claimed.published is not None
    columns = claim.columns[0] if claim.kind == "orders" else [claimed.label(column) for column in claim.columns]
    numbers = {name: _shortest(getattr(found, name)) for name in ("difference", "low", "high", "p", "p_holm")}
    return {
        "id": claim.id,
        "claim": claim.claim,
        "quote": claim.quote if compared else "",
        "source": claim.source,
        "kind": claim.kind,
        "a": " ".join(claim.a),
        "b": " ".join(claim.b),
        "column": "; ".join(columns),
        "stated": claim.stated if compared else "",
        "unit": claim.unit or "points",
        "published": check.value,
        "published_verdict": check.verdict,
        "published_note": check.note,
        **numbers,
        "n": found.n or "",
        "verdict": found.verdict,
        "note": found.note,
    }


def _shortest(value: float) -> str:
    return "" if math.isnan(value) else f"{value + 0.0:.6g}"  # no -0


def _measured(row: pd.Series) -> str:
    """Return the difference that decides, with its interval: `+1.20 [0.41, 1.99]`."""
    if not row["difference"]:
        return DASH
    low, high = (f"{float(row[name]):.2f}".replace("-", "−") for name in ("low", "high"))
    unit = " %" if row["unit"] == "%" else ""
    return f"{float(row['difference']):+.2f}".replace("-", "−") + f" [{low}, {high}]{unit}"


def _p(row: pd.Series) -> str:
    if not row["p_holm"]:
        return DASH
    return "< 0.001" if float(row["p_holm"]) < 0.001 else f"{float(row['p_holm']):.3f}"


def _stated(row: pd.Series) -> str:
    unit = "" if row["unit"] == "points" else f" {row['unit']}"
    return f"{row['stated']}{unit}" if row["stated"] else DASH


class Told(NamedTuple):
    """What is said around the claims: whether the paper's numbers are; how many have each verdict; what columns are."""

    compared: bool
    counts: str
    legend: str


def _counts(found: Sequence[Claim], frame: pd.DataFrame, compared: bool) -> str:
    """Return how many claims have each verdict, in words: several sentences may ask the same."""
    verdicts = Counter(frame["verdict"])
    told = ", ".join(f"{verdicts[name]} {name}" for name in VERDICTS)
    text = f"Of {len(frame)} claims on {len({_asked(claim) for claim in found})} different comparisons: {told}."
    if compared:
        against = Counter(frame["published_verdict"])
        counts = f"{against[FOLLOWS]} follow, {against[FOLLOWS_NOT]} do not, {against[NOT_STATED]} are not in them"
        text += f" By the paper's own tables: {counts}."
    return text


def _asked(claim: Claim) -> frozenset[Any]:
    """Return what a claim compares, whichever side it says is above."""
    of = claim.artifacts[:1] if claim.of_grid else ()  # all points of a figure
    if claim.kind in ("larger effect", "diverges", "orders"):
        return frozenset({(claim.kind, claim.a, claim.b, claim.columns, of)})
    return frozenset((frozenset({a, b}), column, of) for a, b, column in claim.comparisons([GRID]))


def _legend(recipe: ClaimsRecipe, compared: bool) -> str:
    parts = [LEGEND, LEGEND_SEEDS if len(recipe.seeds) > 1 else LEGEND_ONE_SEED]
    return " ".join([*parts, LEGEND_PUBLISHED] if compared else parts)


def _shown(frame: pd.DataFrame, compared: bool) -> pd.DataFrame:
    """Return the table of Markdown and LaTeX: one row for each claim."""
    shown = pd.DataFrame(
        {
            "Claim": frame["claim"] + " (" + frame["source"] + ")",
            "Verdict": frame["verdict"],
            "Difference [95%]": frame.apply(_measured, axis=1),
            "p": frame.apply(_p, axis=1),
            "n": frame["n"].map(str).replace("", DASH),
        }
    )
    if compared:
        shown["Stated"] = frame.apply(_stated, axis=1)
        shown["Tables give"] = frame["published"].replace("", DASH)
        shown["Follows"] = frame["published_verdict"]
    return shown


def _markdown(frame: pd.DataFrame, recipe: ClaimsRecipe, told: Told) -> str:
    shown = _shown(frame, told.compared)
    shown["Note"] = (frame["note"] + " " + frame["published_note"]).str.strip()
    table = shown.map(escape_markdown).to_markdown(index=False, disable_numparse=True)
    notice = [f"> {recipe.notice}"] if recipe.notice else []
    parts = [f"# {recipe.title}", *notice, recipe.caption, told.counts, table, told.legend]
    return "\n\n".join(parts) + "\n"


def _tex(frame: pd.DataFrame, recipe: ClaimsRecipe, told: Told) -> str:
    shown = _shown(frame, told.compared).map(escape_tex)
    shown.columns = [escape_tex(heading) for heading in shown.columns]
    widths = (
        r"p{0.38\linewidth}p{0.1\linewidth}p{0.16\linewidth}rr"
        if not told.compared
        else (r"p{0.3\linewidth}p{0.09\linewidth}p{0.13\linewidth}rrrrp{0.08\linewidth}")
    )
    caption = " ".join(escape_tex(part) for part in (recipe.caption, told.counts, told.legend, recipe.notice) if part)
    table = shown.style.hide(axis="index").to_latex(
        hrules=True, environment="longtable", column_format=widths, caption=caption, label=f"tab:{recipe.name}"
    )
    head = f"% {recipe.title}. Needs \\usepackage{{booktabs,longtable}}, and a single column."
    return f"{head}\n{{\\scriptsize\n{table}}}\n"


def _html(frame: pd.DataFrame, recipe: ClaimsRecipe, told: Told) -> str:
    rows = [
        {**row, "measured": _measured(row), "p_shown": _p(row), "stated_shown": _stated(row)}
        for _, row in frame.iterrows()
    ]
    return pages.render(
        "reporting/claims.html.jinja",
        artifact=recipe,
        rows=rows,
        told=told,
        dash=DASH,
    )
