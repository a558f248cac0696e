"""Set-up and checks, with nothing but python3 (3.11 or newer) and pip.

    python3 dev.py run     the whole pipeline on the bundled images, or what is left of it
    python3 dev.py test    the tests (further arguments go to pytest)
    python3 dev.py lint    ruff and mypy
    python3 dev.py docs    the documentation as a site, in site/

The first call makes the virtual environment .venv and installs everything into it.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "installed"
DEPENDENCIES = ("pyproject.toml", "requirements.txt", "requirements-dev.txt", "requirements-export.txt")


def call(*command: str | Path) -> None:
    """Runs a command in the project's folder and exits with its status if it fails."""
    status = subprocess.run([str(part) for part in command], cwd=ROOT, check=False).returncode
    if status:
        sys.exit(status)


def install() -> None:
    """Makes .venv and installs the project into it, unless that was done for these dependencies."""
    texts = [(ROOT / name).read_bytes() for name in DEPENDENCIES]
    wanted = hashlib.sha256(b"\0".join([sys.version.encode(), *texts])).hexdigest()
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    print("Installing into .venv: some minutes, once.", file=sys.stderr, flush=True)
    # Without pip inside: some systems' python3 cannot put it there. The pip of the system installs from outside.
    call(sys.executable, "-m", "venv", "--clear", "--without-pip", VENV)
    call(sys.executable, "-m", "pip", "--python", PYTHON, "install", "--disable-pip-version-check", "--editable", ".[dev,export]")
    STAMP.write_text(wanted)


def run(arguments: list[str]) -> None:
    """The main job."""
    call(PYTHON, "bin/run.py", "--config=configs/bundled.py", "--workdir=runs/bundled", *arguments)


def test(arguments: list[str]) -> None:
    """The tests, without those that take minutes: file by file in two processes, since one hardly uses two cores."""
    # In the order of their names: else files of few tests come last, and the longest of them keeps one process alone at the end.
    call(PYTHON, "-m", "pytest", "-m", "not slow", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", *arguments)


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
    install()
    COMMANDS[sys.argv[1]](sys.argv[2:])


if __name__ == "__main__":
    main()
