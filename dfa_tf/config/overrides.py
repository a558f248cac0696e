"""Fields by their dotted names: listed, read from `key=value` text, set, and explained where they do not fit."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import pydantic
from pydantic import BaseModel

from dfa_tf.config.schema import Fields
from dfa_tf.config.sections import Section
from dfa_tf.errors import UserError, nearest, shortened

_SECTIONS = {type(value).__name__: name for name, value in Fields() if isinstance(value, Section)}
# For Python values pydantic has other words than for JSON; one mistake reads the same from both.
_WORDS = {
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "Input should be an object"),
    **dict.fromkeys(("list_type", "tuple_type"), "Input should be a valid array"),
}


class DisagreementError(UserError):
    """Each field is right by itself, but they do not go together."""


def field_names() -> list[str]:
    """The dotted names of all fields of a configuration."""
    return list(_names(Fields, ""))


def _names(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        if isinstance(field.default, Section):
            yield from _names(type(field.default), f"{prefix}{name}.")
        else:
            yield prefix + name


def fields_of(section: str) -> list[tuple[str, str, str]]:
    """The fields of a section: dotted name, default as JSON, and meaning with the accepted words.

    Args:
        section: its name; empty for the fields outside of sections.
    """
    default = getattr(Fields(), section) if section else Fields()
    found = []
    for name, field in type(default).model_fields.items():
        if not isinstance(field.default, Section):
            words = [word for word in get_args(field.annotation) if isinstance(word, str)]
            meaning = "; ".join(filter(None, [field.description, " | ".join(words)]))
            found.append((f"{section}.{name}".removeprefix("."), json.dumps(field.default), meaning))
    return found


def parse(assignments: Sequence[str]) -> dict[str, Any]:
    """Values by dotted name.

    Args:
        assignments: `"key.path=value"` each; the value is JSON, or else a string. The last one for a key counts.

    Raises:
        UserError: if an assignment has no `=`, or holds a number or text that JSON cannot hold.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"an override must read key.path=value. Received: {shortened(assignment)}")
        values.pop(key, None)  # so that the order is that of the last ones
        values[key] = _value(text)
    try:
        json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise UserError(f"overrides must be finite numbers and UTF-8 text. Received: {shortened(list(assignments))} ({error})") from None
    return values


def _value(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(constant)  # NaN and infinity are not JSON

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return text


def assign(tree: dict[str, Any], key: str, value: Any) -> None:
    """Sets a field of a configuration's tree by its dotted name. Dictionaries on the way are copied, since they may be the caller's.

    Unknown names are set too: the schema refuses them and lists its fields.

    Raises:
        UserError: if the name continues below a field that is no section.
    """
    *parents, last = key.split(".")
    node = tree
    for part in parents:
        inner = node.get(part, {})
        if not isinstance(inner, Mapping):
            raise UserError(f"unknown field. Received: {shortened(key)}. {nearest(key, field_names())}")
        node[part] = dict(inner)
        node = node[part]
    node[last] = value


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns an error of pydantic into a `UserError` of one line, a `DisagreementError` where no field is wrong by itself."""
    try:
        yield
    except pydantic.ValidationError as error:
        raise (DisagreementError if _is_disagreement(error) else UserError)(explain(error)) from None


def _is_disagreement(error: pydantic.ValidationError) -> bool:
    """Whether only sections were refused, for what their fields are together."""
    places = {(), *((name,) for name in _SECTIONS.values())}
    return all(each["type"] == "value_error" and each["loc"] in places for each in error.errors())


def explain(error: pydantic.ValidationError) -> str:
    """One line about the first mistake: the field, the rule, what was received, the nearest right name."""
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"]]
    if error.title in _SECTIONS:
        parts.insert(0, _SECTIONS[error.title])
    field = ".".join(parts)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown field. Received: {shortened(field)}. {nearest(field, [*field_names(), *_SECTIONS.values()])}{more}"
    if first["type"] == "json_invalid":
        return f"a configuration must be JSON. {first['msg']}"
    message = _WORDS.get(first["type"], first["msg"]).removeprefix("Value error, ")
    received = "" if "Received" in message else f". Received: {shortened(first['input'])}"
    return f"{field or 'config'}: {message}{received}{more}"
