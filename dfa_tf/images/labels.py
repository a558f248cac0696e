"""Labels and sample weights of images: checks, and stratified draws."""

import numpy as np
from sklearn.model_selection import train_test_split

from dfa_tf.errors import UserError

_ROUNDING = 1e-3  # of the sum of a soft label, which may come from half precision


def check_labels(labels: np.ndarray, count: int) -> None:
    """Raises UserError unless these are labels of `count` images.

    Args:
        labels: classes, integers `[count]`, or soft labels, floats `[count, num_classes]`, whose rows sum to 1.
        count: number of images.
    """
    kind = np.integer if labels.ndim == 1 else np.floating
    if labels.ndim not in (1, 2) or not np.issubdtype(labels.dtype, kind) or len(labels) != count:
        raise UserError(
            f"labels must be classes, integers [{count}], or soft labels, floats [{count}, num_classes]. "
            f"Received: {labels.dtype} of shape {labels.shape}"
        )
    if labels.ndim == 2 and count:
        sums = labels.sum(axis=1, dtype=np.float64)
        if not (labels >= 0).all() or not (abs(sums - 1) <= _ROUNDING).all():
            received = f"values from {labels.min():g} to {labels.max():g}, sums from {sums.min():g} to {sums.max():g}"
            raise UserError(f"soft labels must be probabilities: values of 0 or more, rows that sum to 1. Received: {received}")


def check_weights(weights: np.ndarray, count: int) -> None:
    """Raises UserError unless these are sample weights of `count` images: floats `[count]`, 0 or more, not all 0."""
    if weights.shape != (count,) or not np.issubdtype(weights.dtype, np.floating):
        raise UserError(f"sample weights must be floats of shape ({count},). Received: {weights.dtype} of shape {weights.shape}")
    if count and not ((weights >= 0).all() and np.isfinite(weights).all() and weights.any()):
        raise UserError(f"sample weights must be 0 or more, and not all 0. Received: {weights.min():g} to {weights.max():g}")


def draw(indices: np.ndarray, classes: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a random share of images, stratified by class.

    Args:
        indices: of the images to draw from, integers `[n]`.
        classes: class of each image by index, integers.
        fraction: the share, 0 up to but not including 1; 0 draws none.
        seed: of the draw.

    Returns:
        The remaining and the drawn indices, each in ascending order.

    Raises:
        UserError: if a class has too few images for both parts.
    """
    if fraction == 0:
        return indices, indices[:0]
    try:
        kept, drawn = train_test_split(indices, test_size=fraction, stratify=classes[indices], random_state=seed)
    except ValueError as error:
        raise UserError(f"every split needs images of every class. {error}") from None
    if missing := set(classes[indices]) - (set(classes[kept]) & set(classes[drawn])):
        raise UserError(f"every split needs images of every class. Received: too few of class {min(missing)} for a share of {fraction:g}")
    return np.sort(kept), np.sort(drawn)
