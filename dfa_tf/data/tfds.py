"""Any image classification data set of TensorFlow Datasets, by its name."""

from collections.abc import Sequence

from dfa_tf.errors import UserError
from dfa_tf.images.labelled_images import Source
from dfa_tf.images.tfds_reader import find, read


def build(
    *,
    data_dir: str | None = None,
    dataset: str | None = None,
    train: str = "train",
    test: str = "test",
    image_size: Sequence[int] | None = None,
) -> Source:
    """A TFDS data set, downloaded only if it is not prepared in `data_dir`.

    Args:
        data_dir: TFDS's data directory.
        dataset: name of the data set, required, for example `"svhn_cropped"` or `"imagenette/160px-v2"`.
        train: TFDS split of the training set, for example `"train"` or `"train[:80%]"`.
        test: TFDS split of the test set, for example `"validation"`.
        image_size: height and width to resize images to (bilinear, antialiased); required if they differ in size.

    Raises:
        UserError: if the data set is unknown, cannot be prepared, or does not have images with one class each.
    """
    if not isinstance(dataset, str):
        raise UserError(f"tfds needs data.options.dataset, the name of a data set, for example svhn_cropped. Received: {dataset!r}")
    return read(find(dataset, data_dir), train=train, test=test, image_size=image_size)
