"""What the reference pages have that the source says already: a hook of mkdocs that puts it in place of their marks."""

import inspect
import json
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

import dfa_tf
from dfa_tf import plugins
from dfa_tf.config import Config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces the marks of a page."""
    for mark, text in (
        ("<!-- public names -->", _public_names),
        ("<!-- configuration -->", _configuration),
        *((f"<!-- plug-ins: {kind} -->", lambda kind=kind: _plugins(kind)) for kind in plugins.KINDS),
    ):
        if mark in markdown:
            markdown = markdown.replace(mark, text())
    return markdown


def _public_names() -> str:
    return "\n".join(f"::: {_home(name)}\n" for name in dfa_tf.__all__)


def _home(name: str) -> str:
    value = getattr(dfa_tf, name)
    return value.__name__ if inspect.ismodule(value) else f"{value.__module__}.{name}"


def _configuration() -> str:
    """A table for each section."""
    alone = {name: field for name, field in Config.model_fields.items() if not isinstance(field.default, BaseModel)}
    tables = [_table("", alone)]
    for name, field in Config.model_fields.items():
        if isinstance(field.default, BaseModel):
            section = type(field.default)
            tables.append(f"## {name}\n\n{inspect.getdoc(section)}\n\n{_table(f'{name}.', section.model_fields)}")
    return "\n\n".join(tables)


def _table(prefix: str, fields: dict[str, FieldInfo]) -> str:
    """A row for each field."""
    rows = ["| field | default | meaning |", "|---|---|---|"]
    for name, field in fields.items():
        default = json.dumps(field.get_default(call_default_factory=True))
        rows.append(f"| `{prefix}{name}` | `{default}` | {_meaning(field)} |")
    return "\n".join(rows)


def _meaning(field: FieldInfo) -> str:
    """What a field says of itself, with the words that it takes, where it takes words."""
    words = ", ".join(f"`{word}`" for word in get_args(field.annotation) if isinstance(word, str))
    return "; ".join(filter(None, [(field.description or "").replace("|", r"\|"), words]))


def _plugins(kind: str) -> str:
    """The `build` of each module, under the names that it goes by."""
    modules: dict[str, list[str]] = {}
    for name in plugins.names(kind):
        modules.setdefault(plugins.builder(kind, name).func.__module__, []).append(name)
    parts = []
    for module, names in modules.items():
        called = ", ".join(f"`{name}`" for name in names)
        shown = f"::: {module}\n    options:\n      members: [build]\n      heading_level: 3\n"
        parts.append(f"## {module.rpartition('.')[2]}\n\nNames: {called}\n\n{shown}")
    return "\n".join(parts)
