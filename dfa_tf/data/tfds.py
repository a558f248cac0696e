"""Any image classification set of TensorFlow Datasets, by its name."""

from collections.abc import Sequence

from dfa_tf.errors import UserError
from dfa_tf.images.splits import Source
from dfa_tf.images.tfds_reader import find, read


def build(
    *,
    data_dir: str | None = None,
    dataset: str | None = None,
    train: str = "train",
    test: str = "test",
    image_size: Sequence[int] | None = None,
) -> Source:
    """A TFDS data set, downloaded only where it is not prepared in `data_dir`.

    Args:
        data_dir: TFDS's data directory.
        dataset: its name, which must be given, as `"svhn_cropped"` or `"imagenette/160px-v2"`.
        train: TFDS split of the training set, as `"train"` or `"train[:80%]"`.
        test: of the test set, as `"validation"` where it is called so.
        image_size: height and width that images are resized to (bilinear, antialiased); needed where they differ in size.

    Raises:
        UserError: if the data set is unknown, cannot be made, or does not hold images with one class each.
    """
    if not isinstance(dataset, str):
        raise UserError(f"tfds needs the name of a data set in data.options.dataset, as svhn_cropped. Received: {dataset!r}")
    return read(find(dataset, data_dir), train=train, test=test, image_size=image_size)
