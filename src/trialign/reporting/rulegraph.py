"""Draws Snakemake's rule graph as a picture, without the graphviz programs: users' machines rarely have them.

The layout is Sugiyama's: rules in layers, each below all that it reads from; edges that skip layers pass through
placeholders; layers are ordered and shifted towards the mean of their neighbours, so that few edges cross.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import networkx as nx

from trialign.errors import UserError
from trialign.reporting.figures import OKABE_ITO, STYLE, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NODE = re.compile(r'^\s*(\d+)\[label = "([^"]*)"', re.MULTILINE)
_EDGE = re.compile(r"^\s*(\d+) -> (\d+)", re.MULTILINE)
_SWEEPS = 12
LAYER, HEIGHT, GAP, LETTER = 0.62, 0.30, 0.22, 0.075  # inches: layers apart, box height, between boxes, a letter
PLACEHOLDER = 0.06  # inches: the width that a passing edge takes

Node = str | tuple[str, str, int]  # a rule, or the place where the edge from one to another passes a layer
Places = dict[Node, float]


def draw(dot_text: str, out: Path) -> None:
    """Draw the text of `snakemake --rulegraph dot` as `out` with the suffixes .svg and .png.

    A rule that reads its own results has a loop. UserError where the text holds no rules.
    """
    save_graph(parse(dot_text), out.with_suffix(".svg"), out.with_suffix(".png"))


def save_graph(rules: nx.DiGraph, *files: Path) -> None:
    """Draw rules and their edges (from the rule that is read to the rule that reads) into files, by their suffixes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    layers = ordered(rules)
    places = shifted(rules, layers)
    width = max(places[node] + _width(node) / 2 for node in places) + 0.35  # room for a loop on the right
    with rc_context(STYLE):
        figure = Figure(figsize=(width, LAYER * len(layers)))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(-LAYER * (len(layers) - 0.5), LAYER * 0.5))
        axes.axis("off")
        _draw_edges(axes, rules, layers, places)
        for depth, layer in enumerate(layers):
            for node in layer:
                if isinstance(node, str):
                    _draw_box(axes, node, places[node], -LAYER * depth, target=not any(rules.succ[node]))
        for file in files:
            save(figure, file, "Rule graph")


def parse(dot_text: str) -> nx.DiGraph:
    """Read the rules and their edges (from the rule that is read to the rule that reads) from dot text."""
    names = dict(_NODE.findall(dot_text))
    if not names:
        raise UserError("the rule graph holds no rules: give the output of `snakemake --rulegraph dot`, nothing else")
    rules = nx.DiGraph()
    rules.add_nodes_from(sorted(names.values()))
    rules.add_edges_from(sorted((names[a], names[b]) for a, b in _EDGE.findall(dot_text)))
    return rules


def layered(rules: nx.DiGraph) -> dict[str, int]:
    """Return the layer of each rule, one more than the deepest rule that it reads from.

    Rules that read from each other in turns share a layer; a rule that reads from none is just above its first reader.
    """
    groups = nx.condensation(rules)
    depth = {
        rule: depth
        for depth, generation in enumerate(nx.topological_generations(groups))
        for group in generation
        for rule in groups.nodes[group]["members"]
    }
    sources = {rule: [depth[reader] - 1 for reader in rules.succ[rule]] for rule in rules if not rules.pred[rule]}
    return depth | {rule: min(above) for rule, above in sources.items() if above}


def ordered(rules: nx.DiGraph) -> list[list[Node]]:
    """Return the nodes of each layer, left to right: rules, and a placeholder where an edge passes through."""
    depth = layered(rules)
    layers: list[list[Node]] = [[] for _ in range(max(depth.values()) + 1)]
    for rule in sorted(rules):
        layers[depth[rule]].append(rule)
    for a, b in rules.edges:
        for between in range(depth[a] + 1, depth[b]):
            layers[between].append((a, b, between))
    links = _links(rules, layers)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for upper, lower in list(pairwise(layers))[:: 1 if down else -1]:
            fixed, moved = (upper, lower) if down else (lower, upper)
            rank: Places = {node: i / len(fixed) for i, node in enumerate(fixed)}
            keep = {node: i / len(moved) for i, node in enumerate(moved)}
            moved.sort(key=lambda node, rank=rank, keep=keep: _mean(links[node], rank, keep[node]))
    return layers


def shifted(rules: nx.DiGraph, layers: list[list[Node]]) -> Places:
    """Return the horizontal place of each node's middle, in inches from the left edge; boxes do not overlap."""
    links = _links(rules, layers)
    places: Places = {}
    for layer in layers:
        places |= _apart(layer, dict.fromkeys(layer, 0.0))
    for _ in range(_SWEEPS):
        for layer in [*layers, *reversed(layers)]:
            places |= _apart(layer, {node: _mean(links[node], places, places[node]) for node in layer})
    left = min(places[node] - _width(node) / 2 for node in places) - 0.05
    return {node: place - left for node, place in places.items()}


def _links(rules: nx.DiGraph, layers: list[list[Node]]) -> dict[Node, list[Node]]:
    """Return the neighbours of each node in the layers above and below, along the edges and their placeholders."""
    links: dict[Node, list[Node]] = {node: [] for layer in layers for node in layer}
    for a, b in rules.edges:
        chain = _chain(a, b, layers)
        for upper, lower in pairwise(chain):
            links[upper].append(lower)
            links[lower].append(upper)
    return links


def _chain(a: str, b: str, layers: list[list[Node]]) -> list[Node]:
    """Return what the edge from `a` to `b` runs through, both ends included."""
    between = [node for layer in layers for node in layer if isinstance(node, tuple) and node[:2] == (a, b)]
    return [a, *between, b]


def _mean(neighbours: list[Node], places: Places, otherwise: float) -> float:
    known = [places[node] for node in neighbours if node in places]
    return sum(known) / len(known) if known else otherwise


def _apart(layer: list[Node], wanted: Places) -> Places:
    """Return places as near to `wanted` as the order and the widths of the boxes allow: midway of both packings."""
    rightwards: Places = {}
    leftwards: Places = {}
    for before, node in zip([None, *layer], layer, strict=False):
        least = rightwards[before] + _distance(before, node) if before is not None else wanted[node]
        rightwards[node] = max(wanted[node], least)
    for after, node in zip([None, *reversed(layer)], reversed(layer), strict=False):
        most = leftwards[after] - _distance(after, node) if after is not None else wanted[node]
        leftwards[node] = min(wanted[node], most)
    return {node: (rightwards[node] + leftwards[node]) / 2 for node in layer}


def _width(node: Node) -> float:
    return LETTER * len(node) + 0.2 if isinstance(node, str) else PLACEHOLDER


def _distance(a: Node, b: Node) -> float:
    return (_width(a) + _width(b)) / 2 + (GAP if isinstance(a, str) or isinstance(b, str) else PLACEHOLDER)


def _draw_box(axes: Axes, rule: str, x: float, y: float, target: bool) -> None:
    from matplotlib.patches import FancyBboxPatch

    width = _width(rule)
    colour = OKABE_ITO[1] if target else OKABE_ITO[0]
    corner = (x - width / 2, y - HEIGHT / 2)
    shape = "round,pad=0,rounding_size=0.06"
    axes.add_patch(FancyBboxPatch(corner, width, HEIGHT, boxstyle=shape, fc="white", ec=colour, lw=1.1, zorder=3))
    axes.text(x, y, rule, ha="center", va="center_baseline", fontsize=8, zorder=4)


def _draw_edges(axes: Axes, rules: nx.DiGraph, layers: list[list[Node]], places: Places) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    depth = {node: -LAYER * i for i, layer in enumerate(layers) for node in layer}
    look = {"arrowstyle": "-|>,head_length=3,head_width=1.6", "color": "#8A929C", "linewidth": 0.8, "zorder": 1}
    for a, b in rules.edges:
        if depth[a] == depth[b]:  # a loop, or rules that read in turns: an arc at the side
            side = places[a] + _width(a) / 2, places[b] + (_width(b) / 2 if a == b else -_width(b) / 2)
            start, end = (side[0], depth[a] + HEIGHT / 4), (side[1], depth[b] - HEIGHT / 4)
            arc = f"arc3,rad={-1.6 if a == b else -0.3}"
            axes.add_patch(FancyArrowPatch(start, end, connectionstyle=arc, shrinkA=0, shrinkB=0, **look))
            continue
        chain = _chain(a, b, layers)
        points = [(places[node], depth[node]) for node in chain]
        points[0] = (points[0][0], points[0][1] - HEIGHT / 2)
        points[-1] = (points[-1][0], points[-1][1] + HEIGHT / 2)
        vertices, codes = [points[0]], [Curve.MOVETO]
        for (x0, y0), (x1, y1) in pairwise(points):
            middle = (y0 + y1) / 2
            vertices += [(x0, middle), (x1, middle), (x1, y1)]
            codes += [Curve.CURVE4] * 3
        axes.add_patch(FancyArrowPatch(path=Curve(vertices, codes), shrinkA=0, shrinkB=0, **look))
