"""A hook of mkdocs that fills the reference pages from the source, in place of their marks."""

import inspect
from typing import Any

from pydantic import BaseModel

import dfa_tf
from dfa_tf import plugins
from dfa_tf.config import Config, fields_of


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
    return "\n".join(f"::: {_home(name)}\n    options:\n      inherited_members: true\n" for name in dfa_tf.__all__)


def _home(name: str) -> str:
    value = getattr(dfa_tf, name)
    return value.__name__ if inspect.ismodule(value) else f"{value.__module__}.{name}"


def _configuration() -> str:
    """A table for each section."""
    tables = [_table("")]
    for section, content in Config():
        if isinstance(content, BaseModel):
            tables.append(f"## {section}\n\n{inspect.getdoc(type(content))}\n\n{_table(section)}")
    return "\n\n".join(tables)


def _table(section: str) -> str:
    """A row for each field."""
    rows = [f"| `{name}` | `{default}` | {meaning.replace('|', 'or')} |" for name, default, meaning in fields_of(section)]
    return "\n".join(["| field | default | meaning |", "|---|---|---|", *rows])


def _plugins(kind: str) -> str:
    """The `build` of each module, with its public names."""
    modules: dict[str, list[str]] = {}
    for name in plugins.names(kind):
        modules.setdefault(plugins.builder(kind, name).func.__module__, []).append(name)
    parts = []
    for module, names in modules.items():
        called = ", ".join(f"`{name}`" for name in names)
        shown = f"::: {module}\n    options:\n      members: [build]\n      heading_level: 3\n"
        parts.append(f"## {module.rpartition('.')[2]}\n\nNames: {called}\n\n{shown}")
    return "\n".join(parts)
