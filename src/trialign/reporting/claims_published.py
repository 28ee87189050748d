"""Whether claims follow from the paper's own tables: from the cells as they are printed, exactly (fractions).

A mean is taken of the cells, not of the printed averages; where those give another number, it is said. A stated size
follows where the number that the cells give prints as it, rounded or cut off, as the paper cuts off (`docs/claims.md`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

from trialign.claims import GRID, Claim, Comparison
from trialign.lineage import Lineage, spell
from trialign.reporting.claims_read import Cells, Claimed

FOLLOWS, FOLLOWS_NOT, NOT_STATED = "follows", "does not follow", "not stated in tables"


class Check(NamedTuple):
    """What the paper's tables give for a claim, in its units ("" where nothing), whether it follows, and why not."""

    value: str = ""
    verdict: str = ""
    note: str = ""


class Published:
    """The paper's tables, and the claims that they are held against."""

    def __init__(self, claimed: Claimed, cells: Cells) -> None:
        """Take the cells of the tables, as `Claimed.published` has them."""
        self._claimed, self._cells = claimed, cells

    def check(self, claim: Claim) -> Check:
        """Return what the tables say of a claim."""
        if claim.kind == "larger effect":
            return Check("", NOT_STATED)
        if claim.kind == "orders":
            return self._orders(claim)
        if claim.kind == "diverges":
            return self._diverges(claim)
        return self._compared(claim)

    def _value(self, claim: Claim, lineage: str, column: Sequence[str]) -> Fraction | None:
        """Return a benchmark's cell, or the mean of several benchmarks', in points; None where one is not known."""
        for artifact in claim.artifacts:
            row = self._cells.get(artifact, {}).get(lineage, {})
            if all(name in row for name in column):
                return sum((Fraction(row[name]) for name in column), Fraction(0)) / len(column)
        return None

    def _printed(self, claim: Claim, lineage: str, column: Sequence[str]) -> Fraction | None:
        """Return an average that a table prints beside its cells."""
        rows = (self._cells.get(artifact, {}).get(lineage, {}) for artifact in claim.artifacts)
        texts = [row[" ".join(column)] for row in rows if " ".join(column) in row]
        return Fraction(texts[0]) if len(column) > 1 and texts else None

    def _difference(self, claim: Claim, comparison: Comparison) -> Fraction | None:
        """Return a less b in the claim's units."""
        a, b, column = comparison
        first, second = self._value(claim, a, column), self._value(claim, b, column)
        if first is None or second is None:
            return None
        return (first - second) * Fraction(self._claimed.factor(claim, column))

    def _compared(self, claim: Claim) -> Check:
        compared = claim.comparisons(self._claimed.points(claim) or (GRID,))
        found = {item: value for item in compared if (value := self._difference(claim, item)) is not None}
        if not found:
            return Check("", NOT_STATED)
        known, whole = list(found), len(found) == len(compared)

        def strength(i: int) -> Fraction:
            size = found[known[i]] / Fraction(self._claimed.wholes[known[i].column[0]])
            return -abs(size) if claim.kind == "same" else size

        if claim.kind == "most" and not whole:
            return Check("", NOT_STATED)
        item = known[claim.deciding(len(known), strength)]
        value = found[item]
        if claim.kind == "same":
            return Check(number(value), NOT_STATED, "The paper names no margin within which there is no difference.")
        against = value <= 0 and (whole or claim.kind != "any")
        if not against and not whole:
            return Check(number(value), NOT_STATED, f"{len(found)} of {len(compared)} comparisons are in tables.")
        if against:
            behind = [key for key in known if found[key] <= 0]
            return Check(number(value), FOLLOWS_NOT, " ".join(self._behind(claim, behind, len(known))))
        if not claim.stated or prints_as(value, claim.stated):
            return Check(number(value), FOLLOWS, " ".join(self._averages(claim, item, value)))
        notes = [self._sides(claim, item, value), *self._averages(claim, item, value), *self._others(claim, item)]
        return Check(number(value), FOLLOWS_NOT, " ".join([*notes, *self._share(claim, item)]))

    def _behind(self, claim: Claim, behind: Sequence[Comparison], of: int) -> Iterable[str]:
        """Yield which comparisons go against a claim: both numbers of the first three, and how many there are."""
        if of > 1:
            yield f"{len(behind)} of {of} comparisons are against it."
        for a, b, column in behind[:3]:
            first, second = self._value(claim, a, column), self._value(claim, b, column)
            yield f"{self._claimed.label(column)}: {a} {number(first)}, {b} {number(second)}."

    def _sides(self, claim: Claim, item: Comparison, value: Fraction) -> str:
        a, b, column = item
        first, second = self._value(claim, a, column), self._value(claim, b, column)
        unit = f" {claim.unit}" if claim.unit == "%" else ""
        return (
            f"Stated {claim.stated}, but {number(first)} of {a} less {number(second)} of {b} is {number(value)}{unit}."
        )

    def _averages(self, claim: Claim, item: Comparison, value: Fraction) -> Iterable[str]:
        """Yield what the printed averages give, where it is another number, and whose average its cells do not give."""
        a, b, column = item
        first, second = self._printed(claim, a, column), self._printed(claim, b, column)
        if first is None or second is None or not claim.stated:
            return
        printed = (first - second) * Fraction(self._claimed.factor(claim, column))
        if not prints_as(value, f"{float(printed):.2f}"):
            yield f"The printed averages give {number(printed)}."
        for lineage, average in ((a, first), (b, second)):
            cells = self._value(claim, lineage, column)
            if cells is not None and not prints_as(cells, f"{float(average):.2f}"):
                yield f"The average of {lineage} is printed as {number(average)}, its cells give {number(cells)}."

    def _others(self, claim: Claim, item: Comparison) -> Iterable[str]:
        """Yield what the stated size fits instead: other settings of a, or other lineages that are claimed about."""
        a, b, column = item
        for lineage in self._siblings(claim, a):
            value = self._difference(claim, Comparison(lineage, b, column))
            if value is not None:
                fits = "gives it" if prints_as(value, claim.stated) else "does not give it either"
                yield f"With {lineage} it is {number(value)}, which {fits}."
        for other in self._claimed.claims:
            if other.kind != "difference" or other.columns != claim.columns or (other.a, other.b) == (claim.a, claim.b):
                continue
            pair = other.comparisons()[0]
            value = self._difference(other.model_copy(update={"unit": claim.unit}), pair)
            if value is not None and prints_as(value, claim.stated):
                yield f"{claim.stated} is what the tables give for {pair.a} over {pair.b}."
                return

    def _siblings(self, claim: Claim, lineage: str) -> list[str]:
        """Return the other settings of a lineage's last stage in the claim's tables."""
        run = Lineage.parse(lineage)
        rows = dict.fromkeys(name for artifact in claim.artifacts for name in self._cells.get(artifact, {}))
        return [name for name in rows if name != lineage and _shape(Lineage.parse(name)) == _shape(run)]

    def _share(self, claim: Claim, item: Comparison) -> Iterable[str]:
        """Yield the other reading of a percentage, a share of b, where it gives what is stated."""
        a, b, column = item
        first, second = self._value(claim, a, column), self._value(claim, b, column)
        if claim.unit == "%" and first is not None and second and self._claimed.wholes[column[0]] != 100:
            share = 100 * (first - second) / second
            fits = "gives it" if prints_as(share, claim.stated) else "does not give it either"
            yield f"As a share of {b}'s score it is {number(share)} %, which {fits}."

    def _diverges(self, claim: Claim) -> Check:
        ((a, b, column),) = claim.comparisons()
        if self._value(claim, b, column) is None:
            return Check("", NOT_STATED)
        if (score := self._value(claim, a, column)) is None:
            return Check("", FOLLOWS, f"The table has a score of {b}, and none of {a}.")
        return Check("", FOLLOWS_NOT, f"The table has a score of {a}: {number(score)}.")

    def _orders(self, claim: Claim) -> Check:
        """Compare learning rates: those of the tables, or of a lineage's name. An order is a whole factor of ten."""
        first, second = (self._rate(claim, lineage) for lineage in (claim.a[0], claim.b[0]))
        if first is None or second is None:
            return Check("", NOT_STATED)
        orders = math.log10(Fraction(first) / Fraction(second))
        told = f"{first} is {float(Fraction(first) / Fraction(second)):g} times {second}."
        # the rates' own ratio, not its rounded logarithm
        follows = not claim.stated or Fraction(first) / Fraction(second) >= 10 ** Fraction(claim.stated)
        return Check(f"{orders:.2f}".rstrip("0").rstrip("."), FOLLOWS if follows else FOLLOWS_NOT, told)

    def _rate(self, claim: Claim, lineage: str) -> str | None:
        for artifact in claim.artifacts:
            if rate := self._cells.get(artifact, {}).get(lineage, {}).get("learning_rate"):
                return rate
        last = Lineage.parse(lineage).last
        spelled = dict(last.params).get("learning_rate") if last else None
        return None if spelled is None else spell(spelled)


def prints_as(value: Fraction, stated: str) -> bool:
    """Return whether a number prints as `stated`, with its decimals: rounded (half up), or cut off."""
    places = len(stated.partition(".")[2])
    shifted = value * 10**places
    return Fraction(stated) * 10**places in (math.floor(shifted), math.floor(shifted + Fraction(1, 2)))


def number(value: Fraction | None) -> str:
    """Return a number with at most four decimals; nothing for None."""
    return "" if value is None else f"{float(value):.4f}".rstrip("0").rstrip(".")


def _shape(lineage: Lineage) -> tuple[str, str, frozenset[str]]:
    """Return what settings of one stage have in common: parent, method and which parameters are spelled."""
    name, params = (lineage.last.name, lineage.last.params) if lineage.last else ("", ())
    return str(lineage.parent), name, frozenset(key for key, _ in params)
