"""The documentation: its examples give what they say, the site builds without a warning, and asks nothing of other hosts."""

import doctest
import importlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import dfa_tf
from dfa_tf.config import Config

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "RESULTS.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "dfa_tf").rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_give_what_they_say(name: str) -> None:
    done = doctest.testmod(importlib.import_module(name))
    assert done.attempted > 0
    assert done.failed == 0


@pytest.mark.parametrize("page", [page for page in PAGES if ">>>" in page.read_text(encoding="utf-8")], ids=lambda page: page.name)
def test_the_examples_of_a_page_give_what_they_say(page: Path) -> None:
    done = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert done.attempted > 0
    assert done.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_is_python(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        compile(block, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_sets_and_calls_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for assignment in re.findall(r"--(?:set|row=)[ =]?'?((?:\w+\.)+\w+=[^\s'`]+)", text):
        section, field = assignment.partition("=")[0].split(".")
        assert (section, field) == ("key", "path") or field in type(getattr(Config(), section)).model_fields, assignment
    for path in re.findall(r"\b((?:bin|configs|benchmarks|examples|tests)/[\w/]+\.\w+)", text):
        assert (ROOT / path).exists(), path


class _Links(HTMLParser):
    """Collects what a page loads: not where it links to, but what a browser fetches by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source") and values.get("src"):
            self.loaded.append(values["src"] or "")
        if tag == "link" and values.get("rel") in ("stylesheet", "preload", "icon", "preconnect") and values.get("href"):
            self.loaded.append(values["href"] or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_builds_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").rglob("*.md")))  # and the page for what is not found
    for page in pages:
        links = _Links()
        links.feed(page.read_text(encoding="utf-8"))
        assert not [link for link in links.loaded if link.startswith(("http:", "https:", "//"))], page


def test_the_reference_has_every_public_name_field_and_plug_in(site: Path) -> None:
    python = (site / "reference/python.html").read_text(encoding="utf-8")
    for name in dfa_tf.__all__:
        assert re.search(rf'id="dfa_tf\.(\w+\.)*{name}"', python), name
    configuration = (site / "reference/configuration.html").read_text(encoding="utf-8")
    for section, content in Config().model_dump().items():
        for field in content if isinstance(content, dict) else [None]:
            name = section if field is None else f"{section}.{field}"
            assert f"<code>{name}</code>" in configuration, name
    for page, kind in (("methods", "losses"), ("networks", "models"), ("data", "data")):
        text = (site / f"reference/{page}.html").read_text(encoding="utf-8")
        for name in dfa_tf.plugins.names(kind):
            assert f"<code>{name}</code>" in text, name


def test_equations_are_mathml(site: Path) -> None:
    text = (site / "method.html").read_text(encoding="utf-8")
    assert text.count("<math") > 20
    assert "$" not in re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL).split("<article", 1)[1].split("</article>")[0]
