"""The steps that make tables: of lineages (`table`), of one benchmark over two labels (`pivot`), of facts (`facts`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trialign.recipes import CHOSEN, Column, Compared, FactsRecipe, PivotRecipe, Row, TableRecipe
from trialign.reporting import pairs
from trialign.reporting.gather import Measurements
from trialign.reporting.pairs import Pair
from trialign.reporting.render import Cell, Layout, write, write_numbers
from trialign.steps import Step

ITEMS = "Items"


def table(step: Step[TableRecipe]) -> dict[str, Any]:
    """Write a table of lineages x columns. Input: `results`. UserError names a cell that has no data."""
    recipe, measured = step.recipe, Measurements.of(step)
    lineages = [row.lineage for row in recipe.rows]
    filled = [_cells(recipe, measured, column, lineages) for column in recipe.columns]
    layout = Layout(
        texts=recipe.texts,
        numbers=tuple(column.label for column in recipe.columns),
        text_rows=tuple(_texts(row, recipe, measured) for row in recipe.rows),
        number_rows=tuple(tuple(cells[lineage] for cells, _ in filled) for lineage in lineages),
    )
    return _written(layout, recipe, [pair for _, family in filled for pair in family], step)


def _texts(row: Row, recipe: TableRecipe, measured: Measurements) -> tuple[str, ...]:
    texts = (row.texts[name] for name in recipe.texts)
    return tuple(measured.chosen(row.lineage, recipe.seeds) if text == CHOSEN else text for text in texts)


def pivot(step: Step[PivotRecipe]) -> dict[str, Any]:
    """Write a table of one benchmark with a lineage in each cell. Input: `results`. UserError as for `table`."""
    recipe, measured = step.recipe, Measurements.of(step)
    places = [[recipe.cells[row][column] for column in recipe.columns] for row in recipe.rows]
    cells, family = _cells(recipe, measured, recipe.column, [lineage for row in places for lineage in row])
    layout = Layout(
        texts=(recipe.corner,),
        numbers=recipe.columns,
        text_rows=tuple((row,) for row in recipe.rows),
        number_rows=tuple(tuple(cells[lineage] for lineage in row) for row in places),
        family="table",
    )
    return _written(layout, recipe, family, step)


def facts(step: Step[FactsRecipe]) -> dict[str, Any]:
    """Write the table of benchmarks with the number of items of each. Input: `results`, one model's suite folders."""
    recipe = step.recipe
    measured = Measurements.of(step)
    counts = [measured.count(benchmark) for benchmark in recipe.benchmarks]
    text_rows = tuple(
        (*(row[column] for column in recipe.columns), str(count))
        for row, count in zip(recipe.rows, counts, strict=True)
    )
    write(Layout((*recipe.columns, ITEMS), (), text_rows, ((),) * len(counts)), recipe, step.out)
    return {"rows": len(counts), "items": sum(counts)}


def _cells(
    recipe: Compared, measured: Measurements, column: Column, lineages: Sequence[str]
) -> tuple[Mapping[str, Cell], list[Pair]]:
    """Return the cell of each lineage in a column of numbers, and the column's pairs."""
    values = {lineage: measured.value(column, lineage, recipe.seeds) for lineage in lineages}
    family = pairs.family(measured, column, lineages, recipe.seeds)
    marks = pairs.marks(values, family)
    published = {number.lineage: number for number in recipe.published if number.column == column.label}
    cells = {
        lineage: Cell(lineage, value, marks.get(lineage, ""), published.get(lineage))
        for lineage, value in values.items()
    }
    return cells, family


def _written(layout: Layout, recipe: Compared, family: Sequence[Pair], step: Step[Any]) -> dict[str, Any]:
    write(layout, recipe, step.out)
    write_numbers(layout, recipe, family, step.out)
    cells = [cell for row in layout.number_rows for cell in row]
    return {
        "rows": len(layout.text_rows),
        "cells": len(cells),
        "lineages": len({cell.lineage for cell in cells}),
        "pairs": len(family),
        "published": sum(cell.published is not None for cell in cells),
    }
