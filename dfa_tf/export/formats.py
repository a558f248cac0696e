"""The formats of an exported student: raw pixels to probabilities and logits, with the class names inside.

Every file takes `images`, raw pixels 0..255 `[B, H, W, C]`, B any number, and gives `probabilities` and `logits`, float32
`[B, num_classes]`. `images` is float32; of `tflite_int8` it is uint8, and a SavedModel has an endpoint for each. All compute in
float32 what the student was trained to compute in bfloat16.
"""

import functools
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from dfa_tf.errors import UserError, nearest, shortened
from dfa_tf.export.runtimes import package
from dfa_tf.export.student import Student
from dfa_tf.export.writers import float16, int8, write_keras, write_onnx, write_saved_model, write_tflite
from dfa_tf.process.startup import silent_stderr
from dfa_tf.process.status import doing

ALL = "all"
_SAVED_MODEL = re.compile(
    r"(saved_model|keras_metadata|fingerprint)\.pb|assets|assets\.extra|assets\.extra/labels\.txt|variables|variables/variables\..+"
)  # what may be in one; no network here has files of assets


class Format(NamedTuple):
    """One kind of file.

    Attributes:
        file: its name in the directory `export/`.
        write: writes it.
        max_difference: the largest difference of a probability from the student's that it may show.
        agreement: the least share of images, 0..1, for which it must have the same class on top.
        packages: needed to write and read it, beside the requirements of this package.
    """

    file: str
    write: Callable[[Student, Path], None]
    max_difference: float
    agreement: float
    packages: tuple[str, ...] = ()


def choose(names: Collection[str]) -> list[str]:
    """Checks the names of formats, and that the packages which they need are there.

    Args:
        names: of formats, or `"all"` among them.

    Returns:
        The names in the order of `FORMATS`.

    Raises:
        UserError: if a name is unknown, or a package is missing.
    """
    for name in names:
        if name not in (*FORMATS, ALL):
            raise UserError(f"a format is one of {', '.join([*FORMATS, ALL])}. Received: {name!r}. {nearest(name, FORMATS)}")
    chosen = [name for name in FORMATS if name in names or ALL in names]
    if not chosen:
        raise UserError(f"name at least one format of {', '.join([*FORMATS, ALL])}. Received: none")
    for name in chosen:
        for needed in FORMATS[name].packages:
            package(needed)
    return chosen


def check_replaceable(path: Path) -> None:
    """Raises UserError if the directory of a SavedModel, which another one is to replace, holds files that no export writes."""
    if path.is_dir() and not path.is_symlink():
        for file in sorted(path.rglob("*")):
            if not _SAVED_MODEL.fullmatch(name := file.relative_to(path).as_posix()):
                raise UserError(f"{path} must hold nothing but what an export writes, which replaces it. Received: {shortened(name)} in it")


def write_all(names: Collection[str], student: Student, folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Writes several files.

    Args:
        names: of formats, in `FORMATS`.
        student: what to export.
        folder: the directory to write them to.

    Returns:
        The paths by format, and for the others why they cannot be written.
    """
    paths, refused = {}, {}
    for name in names:
        try:
            paths[name] = write(name, student, folder / FORMATS[name].file)
        except UserError as error:
            refused[name] = str(error)
    return paths, refused


def write(name: str, student: Student, path: Path) -> Path:
    """Writes one file.

    Args:
        name: of the format, in `FORMATS`.
        student: what to export.
        path: of the file or, for a SavedModel, the directory; it must not exist yet.

    Returns:
        That path.

    Raises:
        UserError: if the format's converter cannot convert the network.
    """
    try:
        with doing(f"writing {FORMATS[name].file}"), silent_stderr():  # the converters write their progress there
            FORMATS[name].write(student, path)
    except Exception as error:  # a converter raises what the operation that it does not know happens to raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"the student cannot be converted ({type(error).__name__}: {reason})") from error
    return path


_LITERT = ("ai_edge_litert.interpreter",)
_ONNX = ("tf2onnx", "onnx", "onnxruntime")

FORMATS = {
    "saved_model": Format("saved_model", write_saved_model, 1e-4, 1.0),
    "keras": Format("student.keras", write_keras, 1e-4, 1.0),
    "tflite": Format("student.tflite", write_tflite, 1e-4, 1.0, _LITERT),
    "tflite_float16": Format("student_float16.tflite", functools.partial(write_tflite, prepare=float16), 0.1, 0.98, _LITERT),
    "tflite_int8": Format("student_int8.tflite", functools.partial(write_tflite, prepare=int8), 1.0, 0.85, _LITERT),
    "onnx": Format("student.onnx", write_onnx, 1e-4, 1.0, _ONNX),
}
"""By name. The tolerances are of what was measured on trained networks (wide ResNets, ResNets, MobileNets V2 and V3): float16 rounds
weights to 11 bits and moved a probability by 0.002 to 0.04; int8 agreed on 89 to 100 % of the images (of one MobileNetV2 on 76 %, which
is refused), least where the student was in doubt itself, and moves the probabilities of such images by much, so that it is held to its
agreement alone."""
