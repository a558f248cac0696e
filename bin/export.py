"""Exports the distilled student, then reloads every file in its own runtime and compares it with the student on test images.

    python bin/export.py --config=configs/bundled.py --workdir=runs/bundled --formats=saved_model,onnx

Writes to export/ in the run directory: saved_model/, student.keras, student.tflite, student_float16.tflite, student_int8.tflite,
student.onnx, and parity.json. All but the first two need packages: pip install ".[export]". A file whose answers exceed its
format's tolerance is not kept. Formats that were exported before are updated too.
"""

from absl import flags

from dfa_tf.bin import command
from dfa_tf.config import Config
from dfa_tf.storage.run_directory import RunDir

_FORMATS = flags.DEFINE_list("formats", ["saved_model"], "Of saved_model, keras, tflite, tflite_float16, tflite_int8, onnx; or all.")


def main() -> None:
    """The binary `export`."""
    command.start(__doc__, _work, [(_FORMATS, "=A,B,...")])


def _work(config: Config, directory: RunDir, options: command.Options) -> None:
    from dfa_tf.pipeline.pipeline import export  # noqa: PLC0415 (it loads TensorFlow)

    export(config, directory, _FORMATS.value, **options)


if __name__ == "__main__":
    main()
