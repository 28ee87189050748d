"""The steps that make tables: of lineages (`table`), of one benchmark over two labels (`pivot`), of facts (`facts`)."""

from __future__ import annotations

from typing import Any

from trialign.recipes import CHOSEN, FactsRecipe, PivotRecipe, Row, TableRecipe
from trialign.reporting.gather import Measurements
from trialign.reporting.render import Cell, Layout, write
from trialign.steps import Step

ITEMS = "Items"


def table(step: Step[TableRecipe]) -> dict[str, Any]:
    """Write a table of lineages x columns. Input: `results`. UserError names a cell that has no data."""
    recipe = step.recipe
    measured = Measurements.of(step)
    layout = Layout(
        texts=recipe.texts,
        numbers=tuple(column.label for column in recipe.columns),
        text_rows=tuple(_texts(row, recipe, measured) for row in recipe.rows),
        number_rows=tuple(
            tuple(Cell(row.lineage, measured.value(column, row.lineage, recipe.seeds)) for column in recipe.columns)
            for row in recipe.rows
        ),
    )
    write(layout, recipe, step.out)
    return _facts(layout)


def _texts(row: Row, recipe: TableRecipe, measured: Measurements) -> tuple[str, ...]:
    texts = (row.texts[name] for name in recipe.texts)
    return tuple(measured.chosen(row.lineage, recipe.seeds) if text == CHOSEN else text for text in texts)


def pivot(step: Step[PivotRecipe]) -> dict[str, Any]:
    """Write a table of one benchmark with a lineage in each cell. Input: `results`. UserError as for `table`."""
    recipe = step.recipe
    measured = Measurements.of(step)
    lineages = [[recipe.cells[row][column] for column in recipe.columns] for row in recipe.rows]
    layout = Layout(
        texts=(recipe.corner,),
        numbers=recipe.columns,
        text_rows=tuple((row,) for row in recipe.rows),
        number_rows=tuple(
            tuple(Cell(lineage, measured.value(recipe.column, lineage, recipe.seeds)) for lineage in row)
            for row in lineages
        ),
    )
    write(layout, recipe, step.out)
    return _facts(layout)


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


def _facts(layout: Layout) -> dict[str, Any]:
    cells = [cell for row in layout.number_rows for cell in row]
    return {"rows": len(layout.text_rows), "cells": len(cells), "lineages": len({cell.lineage for cell in cells})}
