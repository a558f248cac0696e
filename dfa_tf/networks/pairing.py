"""Pairs the layer groups of the student with those of the teacher."""

import logging
import math

from dfa_tf.errors import UserError
from dfa_tf.networks.blocks import LayerGroup
from dfa_tf.networks.features import FeatureModel

_LOG = logging.getLogger(__name__)


def check_pair(student: FeatureModel, teacher: FeatureModel) -> None:
    """Raises UserError unless both networks take the same images and have the same classes."""
    for what in ("num_classes", "image_shape"):
        ours, theirs = getattr(student, what), getattr(teacher, what)
        if ours != theirs:
            raise UserError(
                f"student and teacher must agree in {what}. Received: {ours} of {student.model.name!r}, {theirs} of {teacher.model.name!r}"
            )


def stride(network: FeatureModel, group: LayerGroup) -> tuple[float, float]:
    """The powers of two by which a group's height and width are nearest to those of the image.

    Convolutions without padding cost some pixels: a 35x35 group of a 71x71 image has a stride of 2 too.
    """
    height, width = (2 ** round(math.log2(image / side)) for image, side in zip(network.image_shape[:2], group.shape[:2], strict=True))
    return height, width


def match(student: FeatureModel, teacher: FeatureModel) -> list[tuple[int, int]]:
    """Pairs the groups of two networks.

    If both have the same number of groups, they pair in order. Otherwise groups of the same stride pair: on the same images their
    resolutions agree up to a few pixels. If a network has several groups of one stride, the deepest one pairs.

    Returns:
        Indices of the student's and the teacher's group of each pair, from the image to the logits.

    Raises:
        UserError: if nothing pairs.
    """
    if len(student.groups) == len(teacher.groups):
        return [(i, i) for i in range(len(student.groups))]
    ours, theirs = ({stride(network, group): i for i, group in enumerate(network.groups)} for network in (student, teacher))
    pairs = sorted((i, theirs[size]) for size, i in ours.items() if size in theirs)
    if not pairs:
        raise UserError(
            f"layer groups of student and teacher pair in order, or by stride. Received: {_sizes(student)} in {student.model.name!r} "
            f"and {_sizes(teacher)} in {teacher.model.name!r}; name as many groups in student.groups as in teacher.groups: "
            "bin/describe.py with one network prints its groups"
        )
    return pairs


def keep_paired_groups(student: FeatureModel, teacher: FeatureModel) -> tuple[FeatureModel, FeatureModel]:
    """Both networks with the same number of layer groups: group i of one pairs with group i of the other, as in `match`.

    Groups without a partner are left out. A warning is logged for each group left out or resized.

    Args:
        student: with the teacher's image shape.
        teacher: its groups are paired with the student's.

    Raises:
        UserError: if no groups pair.
    """
    pairs = match(student, teacher)
    aligned = []
    for network, kept in zip((student, teacher), zip(*pairs, strict=True), strict=True):
        for i, group in enumerate(network.groups):
            if i not in kept:
                _LOG.warning("%s: the group of %s has no partner and is left out", network.model.name, _size(group))
        whole = len(kept) == len(network.groups)
        aligned.append(network if whole else FeatureModel(network.model, [network.groups[i] for i in kept], network.tap, network.left_out))
    student, teacher = aligned
    for group, partner in zip(student.groups, teacher.groups, strict=True):
        if group.shape[:2] != partner.shape[:2]:
            _LOG.warning("the student's group of %s is resized for the teacher's of %s", _size(group), _size(partner))
    return student, teacher


def pair_groups(student: FeatureModel, teacher: FeatureModel) -> list[tuple[LayerGroup, LayerGroup]]:
    """The pairs of groups of two aligned networks: (student's, teacher's).

    Raises:
        UserError: if their numbers differ.
    """
    if len(student.groups) != len(teacher.groups):
        raise UserError(
            f"student and teacher must have the same number of layer groups. Received: {len(student.groups)} in {student.model.name!r} "
            f"and {len(teacher.groups)} in {teacher.model.name!r}; dfa_tf.networks.pairing.keep_paired_groups pairs them"
        )
    return list(zip(student.groups, teacher.groups, strict=True))


def _size(group: LayerGroup) -> str:
    return f"{group.height}x{group.width}"


def _sizes(network: FeatureModel) -> list[str]:
    return [_size(group) for group in network.groups]
