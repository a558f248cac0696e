"""Real handwritten digits, 8x8, from scikit-learn. Nothing is downloaded."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from dfa_tf.images.labelled_images import Images, Source

TEST_FRACTION = 0.5


def build() -> Source:
    """1,797 images of 43 writers, 8x8x1, in ten classes, from the optical recognition data set of the UCI repository.

    One half, always the same, is the test set. Grey levels 0..16 are scaled to raw pixels 0..255.

    References:
        E. Alpaydin, C. Kaynak (1998), Optical Recognition of Handwritten Digits.
    """
    digits = load_digits()
    pixels = np.rint(digits.images[..., np.newaxis] * (255 / 16)).astype(np.uint8)
    everything = np.arange(len(pixels))
    train, test = train_test_split(everything, test_size=TEST_FRACTION, stratify=digits.target, random_state=0)
    return Source(
        train=Images(pixels[train], digits.target[train].astype(np.int32)),
        test=Images(pixels[test], digits.target[test].astype(np.int32)),
        class_names=[str(name) for name in digits.target_names],
        mean=[float(pixels[train].mean())],
        std=[float(pixels[train].std())],
        description="handwritten digits, 8x8 grey pixels (scikit-learn)",
    )
