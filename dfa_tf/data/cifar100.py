"""CIFAR-100: 60,000 images of 32x32x3 in a hundred classes."""

from dfa_tf.errors import UserError, nearest
from dfa_tf.images.labelled_images import Source
from dfa_tf.images.tfds_reader import find, read

# Of the training pixels by channel: mean and standard deviation.
STATISTICS = {
    "cifar10": ([125.3, 123.0, 113.9], [63.0, 62.1, 66.7]),
    "cifar100": ([129.3, 124.1, 112.4], [68.2, 65.4, 70.4]),
}


def build(*, data_dir: str | None = None, statistics: str = "cifar10") -> Source:
    """The 50,000 training and 10,000 test images of CIFAR-100, from TensorFlow Datasets.

    Args:
        data_dir: TFDS's data directory. If it has the data set, nothing is downloaded.
        statistics: the mean and standard deviation by which networks built for these data normalise: those of `"cifar10"`,
            which the author of DFA uses on CIFAR-100 too, or of `"cifar100"`.

    Raises:
        UserError: if the data set is missing and cannot be prepared.

    References:
        A. Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images.
    """
    if statistics not in STATISTICS:
        raise UserError(f"unknown statistics. Received: {statistics!r}. {nearest(statistics, STATISTICS)}")
    mean, std = STATISTICS[statistics]
    return read(find("cifar100", data_dir), mean=mean, std=std, description="CIFAR-100, 32x32 colour pixels")
