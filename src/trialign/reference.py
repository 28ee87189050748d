"""The config's reference (config/README.md), its JSON schema for editors, and environment.yml: all generated.

Run `trialign reference` and `trialign environment` after a change; a test fails when files and models drift apart.
"""

from __future__ import annotations

import json
import typing
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union

from pydantic import BaseModel, JsonValue

from trialign import methods
from trialign.config import Experiment

HEAD = """# Config reference

Generated from the typed models (`trialign reference`); do not edit. `schema.json` beside it serves editors: begin a
config with `# yaml-language-server: $schema=schema.json`.

Files overlay each other: maps are merged, lists replaced, null deletes a key. A number such as 5e-7 is written 5.0e-7
in YAML (both are read). Lineages are written `mistral+sft+tpo@alpha=0.9@beta=0.2`: a stage always spells its method's
grid parameters, others only where they differ from the preset; any other parameter of the method or of `training`
may be given the same way, and `view`.
"""

ENVIRONMENT = """# Generated from requirements.lock: trialign environment
name: trialign
channels: [conda-forge]
dependencies:
  - python=3.11
  - pip
  - pip:
"""


def write(folder: Path) -> None:
    """Write README.md and schema.json into the config folder."""
    (folder / "README.md").write_text(markdown())
    (folder / "schema.json").write_text(schema())


def schema() -> str:
    """Return the JSON schema. Nothing is required at the top: an overlay holds a part of a config."""
    generated = Experiment.model_json_schema()
    for part in [generated, *generated["$defs"].values()]:
        part.pop("required", None)
    return json.dumps(generated, indent=1, sort_keys=True) + "\n"


def markdown() -> str:
    """Return the reference: a table for each model of the config, and one for each method's parameters."""
    sections = [HEAD]
    for model in _models(Experiment):
        sections.append(f"## {_heading(model)}\n\n{_first_paragraph(model)}\n\n{_table(model)}")
    for name in methods.names():
        method = methods.get(name)
        grid = ", ".join(f"`{key}`" for key in method.grid) or "none"
        split = "depends" if method.micro_batch_is_global else "does not depend"
        facts = f"Grid parameters: {grid}. TRL's loss {split} on how a batch is split into micro-batches."
        sections.append(f"## Method `{name}`\n\n{facts}\n\n{_table(method.Params)}")
    return "\n".join(sections)


def environment(lock: str) -> str:
    """Return environment.yml with the pins of a requirements lock."""
    pins = "".join(f"      - {line}\n" for line in lock.split())
    return ENVIRONMENT + pins


def _models(root: type[BaseModel]) -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = []

    def visit(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in found:
            found.append(annotation)
            for field in annotation.model_fields.values():
                visit(field.annotation)
        for argument in typing.get_args(annotation):
            visit(argument)

    visit(root)
    return found


def _heading(model: type[BaseModel]) -> str:
    kind = model.model_fields.get("kind")
    return f"{model.__name__}" + (f" (`kind: {kind.default}`)" if kind and isinstance(kind.default, str) else "")


def _first_paragraph(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split("\n\n")[0].split())


def _table(model: type[BaseModel]) -> str:
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else f"`{_plain(field.get_default(call_default_factory=True))}`"
        rows.append(
            f"| `{name}` | {_type(field.annotation)} | {default} | {field.description or 'which kind this is'} |"
        )
    if len(rows) == 2:
        return "No parameters.\n"
    return "\n".join(rows).replace("`None`", "null") + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return "{}"
    return json.dumps(value) if isinstance(value, list | tuple | dict | bool) else value


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(_type(item) for item in arguments if item is not type(None)) + (
            " or null" if type(None) in arguments else ""
        )
    if origin is typing.Literal:
        return ", ".join(f"`{item}`" for item in arguments)
    if origin is dict:
        return f"map of {_type(arguments[1])}"
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if annotation is JsonValue:
        return "any value"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{_heading(annotation).lower().translate(str.maketrans(' ', '-', '()`:'))})"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}[annotation.__name__]
