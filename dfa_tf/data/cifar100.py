"""CIFAR-100: 60,000 images of 32x32x3 in a hundred classes."""

from dfa_tf.errors import UserError, nearest
from dfa_tf.images.splits import Source
from dfa_tf.images.tfds_reader import find, read

# Of the training pixels by channel: mean and standard deviation.
STATISTICS = {
    "cifar10": ([125.3, 123.0, 113.9], [63.0, 62.1, 66.7]),
    "cifar100": ([129.3, 124.1, 112.4], [68.2, 65.4, 70.4]),
}


def build(*, data_dir: str | None = None, statistics: str = "cifar10") -> Source:
    """The 50,000 training and 10,000 test images of CIFAR-100, through TensorFlow Datasets.

    Args:
        data_dir: TFDS's data directory; nothing is downloaded where it holds the data set.
        statistics: mean and standard deviation that networks built for these data normalise by: those of `"cifar10"`,
            as the author of DFA has it on CIFAR-100 too, or of `"cifar100"`.

    Raises:
        UserError: if the data set is not there and cannot be made.

    References:
        A. Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images.
    """
    if statistics not in STATISTICS:
        raise UserError(f"unknown statistics. Received: {statistics!r}. {nearest(statistics, STATISTICS)}")
    mean, std = STATISTICS[statistics]
    return read(find("cifar100", data_dir), mean=mean, std=std, description="CIFAR-100, 32x32 colour pixels")
