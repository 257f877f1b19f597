"""How settings are checked: components chosen by their `type`, and every problem put into one sentence.

Generic: which components exist is written in `lucidnft.config`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, get_args, get_origin

from pydantic import (
    AliasChoices,
    BaseModel,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapSerializer,
    WrapValidator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from lucidnft.schema import ConfigModel

_SHOWN = 12
_EXPECTED = {
    "int_type": "int",
    "int_parsing": "int",
    "int_from_float": "int",
    "float_type": "float",
    "float_parsing": "float",
    "bool_type": "bool (true or false)",
    "bool_parsing": "bool (true or false)",
    "string_type": "str",
    "dict_type": "a section of key: value lines",
    "model_type": "a section of key: value lines",
    "model_attributes_type": "a section of key: value lines",
    "list_type": "list",
    "tuple_type": "list",
    "finite_number": "a finite number",
}


class ConfigError(ValueError):
    """Everything that is wrong with a run file, in one message."""


def one_of(*members: type[ConfigModel]) -> tuple[WrapValidator, WrapSerializer]:
    """Annotations of a field whose section is one of `members`, or an outsider's, chosen by its `type`."""
    return (
        WrapValidator(partial(choose_component, members=members)),
        WrapSerializer(partial(dump_component, members=members)),
    )


def choose_component(
    value: Any, handler: ValidatorFunctionWrapHandler, members: tuple[type[ConfigModel], ...]
) -> ConfigModel:
    """Validate a section with the member its `type` names, or with an outsider's "package.module:Class".

    For use in a pydantic WrapValidator over the union of `members`; pydantic's own choice (`handler`) does
    not know outsiders.

    Raises:
        PydanticCustomError, ValidationError: not a section, or the type is missing or unknown, or the
            settings do not fit it.
    """
    if isinstance(value, ConfigModel):
        return value
    if not isinstance(value, Mapping):
        raise PydanticCustomError("model_type", "expected a section")
    tags = tags_of(members)
    tag = value.get("type")
    if "type" not in value:
        raise _type_error(f"missing; expected one of {', '.join(tags)}", value)
    if tag in tags:
        return tags[tag].model_validate(value)
    if not isinstance(tag, str) or ":" not in tag:
        raise _type_error(unknown_name(tag, tags), tag)
    try:
        found = _imported_component(tag)
    except ValueError as error:
        raise _type_error(str(error), tag) from error
    # The import path stands for the class; a tag of its own is for its author's configs.
    return found.model_validate({k: v for k, v in value.items() if k != "type"})


def dump_component(
    value: Any, handler: SerializerFunctionWrapHandler, members: tuple[type[ConfigModel], ...]
) -> Any:
    """The plain form of a component, from which `choose_component` makes an equal one."""
    if isinstance(value, members):
        return handler(value)
    outsider = f"{type(value).__module__}:{type(value).__qualname__}"
    return {"type": outsider, **{k: v for k, v in value.model_dump(mode="json").items() if k != "type"}}


def tags_of(members: Iterable[type[ConfigModel]]) -> dict[str, type[ConfigModel]]:
    """{type tag: config class}, from the Literal of each class's `type` field."""
    return {get_args(member.model_fields["type"].annotation)[0]: member for member in members}


def unknown_name(seen: object, known: Iterable[str]) -> str:
    """The sentence for a name that is not among the known ones: what is near, or what there is."""
    known = list(known)
    near = difflib.get_close_matches(str(seen), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {_listed(known)}"
    return f"{seen!r} is unknown; {hint}"


def problems_of(
    error: ValidationError, raw: Any, choose_root: Callable[[Any], type[BaseModel] | None]
) -> list[str]:
    """One line per problem: "path: what is wrong, the value seen, what was expected".

    raw: the plain values that were validated.  choose_root: the class of the whole, from the raw values.
    """
    lines = []
    for detail in error.errors():
        path = ".".join(str(part) for part in detail["loc"])
        lines.append(f"{path or 'whole file'}: {_sentence(detail, raw, choose_root)}")
    return lines


def _sentence(detail: ErrorDetails, raw: Any, choose_root: Callable[[Any], type[BaseModel] | None]) -> str:
    kind, value = detail["type"], detail["input"]
    context = detail.get("ctx", {})
    seen = f"got {_short(value)} ({type(value).__name__})"
    if kind == "component_type":
        return detail["msg"]
    if kind in ("extra_forbidden", "missing"):
        owner = _class_at(detail["loc"][:-1], raw, choose_root)
        key = str(detail["loc"][-1])
        return _unknown_key(key, owner, seen) if kind == "extra_forbidden" else _missing_key(key, owner)
    if kind in ("literal_error", "enum"):
        return unknown_name(
            value, [part.strip(" '") for part in context["expected"].replace(" or ", ",").split(",")]
        )
    if kind in _EXPECTED:
        quote = "; put it in quotes" if kind == "string_type" and isinstance(value, (int, float)) else ""
        return f"expected {_EXPECTED[kind]}, {seen}{quote}"
    message = detail["msg"].removeprefix("Value error, ")
    for start in ("Input should be ", "Input should have ", "Value should have "):
        if message.startswith(start):
            return f"expected {message.removeprefix(start)}, {seen}"
    # Checks written by hand name the values they saw; a whole section would only repeat the file.
    return message if isinstance(value, (Mapping, BaseModel)) else f"{message}; {seen}"


def _unknown_key(key: str, owner: type[BaseModel] | None, seen: str) -> str:
    if owner is None:
        return "unknown key"
    for name, field in owner.model_fields.items():
        # Alone either name would have been taken, and with equal values both.
        if isinstance(field.validation_alias, AliasChoices) and key in field.validation_alias.choices:
            return f"{key} is another name of {name}; remove one of the two, they differ, {seen}"
    known = list(owner.model_fields)
    near = difflib.get_close_matches(key, known, n=1)
    return (
        f"unknown key; did you mean {near[0]}?" if near else f"unknown key; expected one of {_listed(known)}"
    )


def _missing_key(key: str, owner: type[BaseModel] | None) -> str:
    annotation = owner.model_fields[key].annotation if owner and key in owner.model_fields else None
    members = _models_in(annotation)
    if members:
        return "missing; add this section"
    return f"missing; expected {getattr(annotation, '__name__', None) or annotation}"


def _class_at(
    loc: tuple[int | str, ...], raw: Any, choose_root: Callable[[Any], type[BaseModel] | None]
) -> type[BaseModel] | None:
    """The config class that reads the section at a path of the raw values, as far as it can be known."""
    value, owner = raw, choose_root(raw)
    members: list[type[BaseModel]] = []
    for part in loc:
        field = owner.model_fields.get(str(part)) if owner is not None else None
        members = members if field is None else _models_in(field.annotation)
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
        is_table = field is not None and get_origin(field.annotation) in (dict, list, tuple)
        owner = None if is_table else _member_for(value, members)
    return owner


def _member_for(value: Any, members: list[type[BaseModel]]) -> type[BaseModel] | None:
    if len(members) == 1:
        return members[0]
    tag = value.get("type") if isinstance(value, Mapping) else None
    for member in members:
        if "type" in member.model_fields and tag in get_args(member.model_fields["type"].annotation):
            return member
    return _imported_component(tag) if isinstance(tag, str) and ":" in tag else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _imported_component(tag: str) -> type[ConfigModel]:
    module_name, _, class_name = tag.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{tag!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, ConfigModel) and hasattr(found, "build")):
        raise ValueError(f"{tag!r} is not a subclass of lucidnft.schema.ConfigModel with a build() method")
    return found


def _type_error(message: str, value: Any) -> ValidationError:
    problem = PydanticCustomError("component_type", "{message}", {"message": message})
    return ValidationError.from_exception_data(
        "component", [{"type": problem, "loc": ("type",), "input": value}]
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _short(value: Any, length: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."
