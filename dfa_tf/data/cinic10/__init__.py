"""CINIC-10: 270,000 images of 32x32x3 in the ten classes of CIFAR-10, drawn from CIFAR-10 and ImageNet."""

from dfa_tf.data.cinic10.cinic10_dataset_builder import Builder
from dfa_tf.errors import UserError, nearest
from dfa_tf.images.labelled_images import Source
from dfa_tf.images.tfds_reader import read

TRAIN_SPLITS = ("train", "train+valid")
# From the authors, for levels 0..1.
MEAN = [255 * level for level in (0.47889522, 0.47227842, 0.43047404)]
STD = [255 * level for level in (0.24205776, 0.23828046, 0.25874835)]


def build(*, data_dir: str | None = None, archive: str | None = None, train_split: str = "train") -> Source:
    """CINIC-10, prepared once by TensorFlow Datasets from the archive of its authors (687,544,992 bytes).

    Args:
        data_dir: TFDS's data directory. If it has the data set, it is only read.
        archive: path of a local `CINIC-10.tar.gz`. If None, it is the file of that name in `downloads/manual` of the
            data directory, or else it is downloaded.
        train_split: `"train"` (90,000 images, the usual protocol) or `"train+valid"` (180,000 images). The test set is always
            `test` (90,000 images).

    Raises:
        UserError: if the archive cannot be obtained or is a wrong file, or if the data directory cannot be written.

    References:
        L. N. Darlow, E. J. Crowley, A. Antoniou, A. J. Storkey (2018), CINIC-10 Is Not ImageNet or CIFAR-10, arXiv 1810.03505.
    """
    if train_split not in TRAIN_SPLITS:
        raise UserError(f"unknown train_split of cinic10. Received: {train_split!r}. {nearest(train_split, TRAIN_SPLITS)}")
    builder = Builder(data_dir=data_dir, archive=archive)
    return read(builder, train=train_split, mean=MEAN, std=STD, description="CINIC-10, 32x32 colour pixels")
