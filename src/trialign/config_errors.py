"""What pydantic finds wrong with a config, as one line: where in the file, what is allowed there, how many more."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union

from pydantic import BaseModel, ValidationError

from trialign.artifact_settings import AnyArtifact
from trialign.errors import names, nearest
from trialign.settings import Benchmark, Data, Source


def first_line(error: ValidationError, model: type[BaseModel], where: str) -> str:
    """Return one pydantic error as one line, with what is allowed, and how many more there are.

    The first; but a key that is unknown goes before one that is missing, which may be the same one, mistyped.
    """
    found = _errors(error)
    first = next((item for item in found if item["type"] == "extra_forbidden"), found[0])
    loc = [part for part in first["loc"] if part != "[key]"]
    place, allowed = _walk(model, loc)
    place = f"{where}: {place}" if place else where
    if first["type"] == "extra_forbidden":
        text = f"unknown key '{loc[-1]}'{nearest(str(loc[-1]), allowed)}; allowed are {names(allowed)}" + _kept(loc)
    elif first["type"] == "missing":
        text = "it is missing"
    elif first["type"] == "union_tag_invalid":
        place, text = (
            f"{place}.kind",
            f"'{first['ctx']['tag']}' is not allowed; allowed are {first['ctx']['expected_tags']}",
        )
    else:
        said = first["msg"][0].lower() + first["msg"][1:]
        for python, yaml in (("valid tuple", "list"), ("tuple", "list"), ("valid dictionary", "map")):
            said = said.replace(python, yaml)
        text = f"{_shortened(first['input'])} is not allowed: {said}"
    more = _mistakes(error, model) - 1
    return f"{place}: {text}" + (f" (and {more} more)" if more > 0 else "")


def _kept(loc: Sequence[str | int]) -> str:
    """Return a hint where a key belongs to another kind than the item's: an overlay that changed the kind kept it."""
    for union in (Source, Data, Benchmark, AnyArtifact):
        kinds = {_tag(choice): choice for choice in _choices(union)}
        if len(loc) > 1 and loc[-2] in kinds:
            others = [kind for kind, choice in kinds.items() if loc[-1] in choice.model_fields]
            if others:
                return f" ('{loc[-1]}' is of kind '{others[0]}': where an overlay changes the kind, set it to null)"
    return ""


def _errors(error: ValidationError) -> list[Any]:
    """Return pydantic's errors, less that a map of a `str | map` is no text, where there is more to say of the map."""
    errors = error.errors()
    telling = [item for item in errors if item["type"] != "string_type" or not isinstance(item["input"], Mapping)]
    return telling or errors


def _mistakes(error: ValidationError, model: type[BaseModel]) -> int:
    """Count the mistakes: one in the top-level `training` shows in every stage, a wrong item leaves its list short."""
    items = [item for item in _errors(error) if item["type"] != "too_short"]
    return len({(_walk(model, item["loc"])[0].rpartition(".")[2], str(item["input"])) for item in items})


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _walk(model: Any, loc: Sequence[str | int]) -> tuple[str, list[str]]:
    """Follow an error's location through the types; return it as text, less union tags, and the keys allowed there."""
    place: list[str] = []
    allowed: list[str] = []
    for part in loc:
        choices = _choices(model)
        tagged = next((c for c in choices if _tag(c) == part or getattr(c, "__name__", None) == part), None)
        if tagged is not None and len(choices) > 1 and not hasattr(tagged, "model_fields"):
            continue  # a plain type of a union, such as the text of `str | ColumnSpec`
        if tagged is not None and len(choices) > 1:
            model = tagged
            allowed = list(model.model_fields)
            continue
        place.append(str(part))
        holder = next((c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if holder is not None:
            allowed = list(holder.model_fields)
            field = holder.model_fields.get(str(part))
            model = field.annotation if field else None
        else:
            model = next(
                (typing.get_args(c)[-1 if typing.get_origin(c) is dict else 0] for c in choices if typing.get_args(c)),
                None,
            )
    return ".".join(place), allowed


def _choices(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is Annotated:
        return _choices(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (Union, UnionType):
        return [c for item in typing.get_args(annotation) for c in _choices(item)]
    return [annotation]


def _tag(annotation: Any) -> Any:
    field = getattr(annotation, "model_fields", {}).get("kind")
    return field.default if field else None
