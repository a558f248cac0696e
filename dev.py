"""Set-up and checks, with nothing but python3 (3.11 or newer) and pip.

    python3 dev.py run             the whole pipeline on the bundled images, or what is left of it
    python3 dev.py test            the tests (further arguments go to pytest)
    python3 dev.py test --quick    the tests that take under two minutes
    python3 dev.py lint            ruff and mypy
    python3 dev.py docs            the documentation as a site, in site/

The first call makes the virtual environment .venv and installs the packages that its command needs.
"""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"


def call(*command: str | Path) -> None:
    """Runs a command in the project's folder and exits with its status if it fails."""
    status = subprocess.run([str(part) for part in command], cwd=ROOT, check=False).returncode
    if status:
        sys.exit(status)


def install(development: bool) -> None:
    """Makes .venv with the packages that running needs, and with those of tests, lint and documentation if wanted.

    Each of the two is installed again only when Python or its files change.
    """
    running = (sys.version, *_texts("pyproject.toml", "requirements.txt"))
    if _changed("running", running):
        # Without pip inside: some systems' python3 cannot put it there. The pip of the system installs from outside.
        call(sys.executable, "-m", "venv", "--clear", "--without-pip", VENV)
        _install("TensorFlow and the other packages of a run (2.5 GB)", "running", running, "--editable", ".")
    developing = _texts("requirements-dev.txt", "requirements-export.txt")
    if development and _changed("development", developing):
        files = ("--requirement", "requirements-dev.txt", "--requirement", "requirements-export.txt")
        _install("the packages of tests, lint and documentation", "development", developing, *files)


def _texts(*names: str) -> tuple[str, ...]:
    return tuple((ROOT / name).read_text(encoding="utf-8") for name in names)


def _changed(part: str, texts: tuple[str, ...]) -> bool:
    stamp = VENV / f"{part}.installed"
    return not stamp.exists() or stamp.read_text(encoding="utf-8") != _digest(texts)


def _digest(texts: tuple[str, ...]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _install(what: str, part: str, texts: tuple[str, ...], *arguments: str) -> None:
    """Installs with pip, whose output is shown only if it fails."""
    print(f"Installing {what} into .venv, once ...", end=" ", file=sys.stderr, flush=True)
    began = time.monotonic()
    # Without bytecode of all modules: Python writes that of those which are imported.
    pip = [sys.executable, "-m", "pip", "--python", str(PYTHON), "install", "--disable-pip-version-check", "--no-compile"]
    done = subprocess.run([*pip, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        print("failed", *done.stdout.splitlines()[-20:], sep="\n", file=sys.stderr)
        sys.exit(done.returncode)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    (VENV / f"{part}.installed").write_text(_digest(texts), encoding="utf-8")


def run(arguments: list[str]) -> None:
    """The main job."""
    call(PYTHON, "bin/run.py", "--config=configs/bundled.py", "--workdir=runs/bundled", *arguments)


def test(arguments: list[str]) -> None:
    """The tests, without those that take minutes: file by file in two processes, since one hardly uses two cores."""
    quick = "--quick" in arguments
    chosen = "not slow and not thorough" if quick else "not slow"
    further = [argument for argument in arguments if argument != "--quick"]
    # In the order of their names: else files of few tests come last, and the longest of them keeps one process alone at the end.
    call(PYTHON, "-m", "pytest", "-m", chosen, "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", *further)


def lint(arguments: list[str]) -> None:
    """Style and types."""
    call(PYTHON, "-m", "ruff", "check", ".")
    call(PYTHON, "-m", "ruff", "format", "--check", ".")
    call(PYTHON, "-m", "mypy")


def docs(arguments: list[str]) -> None:
    """The documentation as a site."""
    call(PYTHON, "-m", "mkdocs", "build", *arguments)


COMMANDS = {"run": run, "test": test, "lint": lint, "docs": docs}


def main() -> None:
    """Reads the command line."""
    if sys.version_info < (3, 11):  # noqa: UP036 (who calls this may have any Python)
        sys.exit(f"dev.py needs Python 3.11 or newer. Received: {sys.version.split()[0]}")
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print((__doc__ or "").strip(), file=sys.stderr)
        sys.exit(0 if sys.argv[1:] in (["--help"], ["-h"]) else 2)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    command = COMMANDS[sys.argv[1]]
    install(development=command is not run)
    command(sys.argv[2:])


if __name__ == "__main__":
    main()
