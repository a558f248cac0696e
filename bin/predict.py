"""Classifies image files with an exported student, or with any Keras classifier of raw pixels 0..255.

    python bin/predict.py --model=runs/bundled/export/student.onnx photo.png scan.jpg --top=3

The model is what bin/export.py has written (saved_model/, .keras, .tflite, .onnx) or any .keras file of logits or softmax
probabilities. Images are PNG, JPEG, BMP, GIF or WebP files; they are resized to the model's input without keeping their aspect.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from dfa_tf.bin import command, shared_flags
from dfa_tf.errors import UserError

_TOP = flags.DEFINE_integer("top", 5, "Number of classes to show for each image.", lower_bound=1)


def main() -> None:
    """The binary `predict`."""
    command.start_alone(__doc__, _work, [(shared_flags.MODEL, "=FILE_OR_DIR"), (_TOP, "=N"), (shared_flags.JSON, "")])


def _work(paths: Sequence[str]) -> None:
    if shared_flags.MODEL.value is None or not paths:
        raise UserError("a model and at least one image are needed: predict.py --model=FILE_OR_DIR IMAGE ...")
    command.load_tensorflow()
    from dfa_tf.export import prediction, runtimes  # noqa: PLC0415 (they load TensorFlow)

    classifier = runtimes.load(Path(shared_flags.MODEL.value))
    photos = [prediction.read_image(path, classifier.image_shape) for path in paths]
    guesses = [prediction.guess(classifier, photo.pixels, _TOP.value) for photo in photos]
    if shared_flags.JSON.value:
        rows = [
            {"image": photo.path, "width": photo.width, "height": photo.height, "classes": [guess._asdict() for guess in found]}
            for photo, found in zip(photos, guesses, strict=True)
        ]
        print(json.dumps(rows, indent=2))
        return
    for photo, found in zip(photos, guesses, strict=True):
        size, taken = f"{photo.width}x{photo.height}", f"{photo.pixels.shape[1]}x{photo.pixels.shape[0]}"
        print(f"{photo.path} ({size})" if size == taken else f"{photo.path} ({size}, resized to {taken})")
        for guess in found:
            print(f"  {guess.probability:8.2%}  {guess.name}")


if __name__ == "__main__":
    main()
