"""The notebooks in examples/: cells use public names only, saved files are clean, and running them gives the saved outputs."""

import ast
import io
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

import dfa_tf

FOLDER = Path(dfa_tf.__file__).parent.parent / "examples"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
_PERCENT = re.compile(r"(\d+\.\d) ?%")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=4)


def code_of(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """The printed lines of the cells, with # in place of each number."""
    streams = [
        output.text for cell in code_of(notebook) for output in cell.outputs if output.output_type == "stream" and output.name == "stdout"
    ]
    return re.sub(r"\d[\d,.]*", "#", "".join(streams)).split("\n")


def kinds(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """The kinds of output of each cell: stdout, or the formats of a displayed object."""
    return [
        [
            output.name if output.output_type == "stream" else " ".join(sorted(output.data))
            for output in cell.outputs
            if output.get("name") != "stderr"
        ]
        for cell in code_of(notebook)
    ]


def used_names(tree: ast.AST) -> Iterator[str]:
    """The names that code uses from the package, such as `compress` or `splits.Split`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "dfa_tf":
            yield node.attr
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("dfa_tf."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dfa_tf"):
            yield from (alias.name if node.module == "dfa_tf" else str(node.module) for alias in node.names)


def test_there_is_an_example() -> None:
    assert [path.name for path in NOTEBOOKS] == ["compress_digits.ipynb"]


def test_its_cells_use_public_names_only(notebook: nbformat.NotebookNode) -> None:
    used = {name for cell in code_of(notebook) for name in used_names(ast.parse(cell.source))}
    assert "compress" in used
    assert used <= set(dfa_tf.__all__)


def test_it_was_run_from_the_top_and_saved_with_its_outputs(notebook: nbformat.NotebookNode) -> None:
    nbformat.validate(notebook)
    cells = code_of(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/png" in formats for outputs in kinds(notebook) for formats in outputs)
    assert {output.output_type for cell in cells for output in cell.outputs} <= {"stream", "execute_result", "display_data"}


def test_it_contains_nothing_about_the_machine(notebook: nbformat.NotebookNode) -> None:
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert [cell.metadata for cell in notebook.cells] == [{}] * len(notebook.cells)
    text = io.StringIO()
    nbformat.write(notebook, text)
    assert re.findall(r'/(?:tmp|home|root|usr|var|Users)/[^"\s]*', text.getvalue()) == []
    assert all(output.get("name") != "stderr" for cell in code_of(notebook) for output in cell.outputs)


@pytest.mark.slow
def test_running_it_gives_the_saved_outputs(notebook: nbformat.NotebookNode, tmp_path: Path) -> None:
    """Numbers differ between machines. The rest of the lines must not, and the students must be as good as the text says."""
    from nbclient import NotebookClient  # noqa: PLC0415 (only needed here, and takes a second)

    fresh = nbformat.from_dict(notebook)
    for cell in code_of(fresh):
        cell.outputs, cell.execution_count = [], None
    NotebookClient(fresh, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert kinds(fresh) == kinds(notebook)
    assert printed(fresh) == printed(notebook)
    (table,) = (cell for cell in code_of(fresh) if cell.id == "table")
    teacher, plain, distilled = (float(number) for number in _PERCENT.findall(table.outputs[0].text))
    assert teacher > 95
    assert distilled > 85
    assert distilled > plain
