"""HTML pages from the templates of this package: each contains everything that it shows, and fetches and runs nothing."""

import base64
from typing import Any

import jinja2

DASH = "\N{EN DASH}"
"""In place of a missing value."""


def render(template: str, **values: Any) -> str:
    """A page.

    Args:
        template: name of a file in `dfa_tf/display/templates`.
        **values: its content; escaped.
    """
    return _PAGES.get_template(template).render(**values)


def image(png: bytes) -> str:
    """A PNG as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def shown(value: Any, form: str = "{}") -> str:
    """A value, formatted by `str.format`; a dash in place of None."""
    return DASH if value is None else form.format(value)


def kibibytes(count: int | None) -> str:
    """A size in bytes, in KiB; a dash in place of None."""
    return DASH if count is None else f"{count / 1024:,.0f} KiB"


_PAGES = jinja2.Environment(
    loader=jinja2.PackageLoader("dfa_tf.display"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_PAGES.filters |= {"shown": shown, "kibibytes": kibibytes}
