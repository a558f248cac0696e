"""Shared by the tests of binaries: a binary called in this process."""

import importlib
import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest


class Done(NamedTuple):
    """What a binary came to."""

    status: int
    out: str
    err: str


def call_binary(binary: str, *arguments: str | Path) -> Done:
    """Calls a binary's main."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [f"{binary}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            importlib.import_module(f"dfa_tf.bin.{binary}").main()
    return Done(stopped.value.code or 0, out.getvalue(), err.getvalue())
