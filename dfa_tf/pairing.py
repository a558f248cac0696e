"""Which layer group of the teacher teaches which group of the student."""

import logging

from dfa_tf.errors import UserError
from dfa_tf.features import FeatureModel
from dfa_tf.graph import LayerGroup

_LOG = logging.getLogger(__name__)


def align(student: FeatureModel, teacher: FeatureModel) -> tuple[FeatureModel, FeatureModel]:
    """Both networks with as many layer groups, group i of the one for group i of the other.

    As many groups on both sides pair in their order. Otherwise groups of the same resolution pair, and the others are
    left out. Whatever is not plain is logged.

    Args:
        student: of the teacher's image shape.
        teacher: whose groups are paired with the student's.

    Raises:
        UserError: if no groups are of the same resolution.
    """
    if len(student.groups) != len(teacher.groups):
        # The deepest of the groups of one resolution stands for it.
        ours, theirs = ({group.shape[:2]: group for group in network.groups} for network in (student, teacher))
        pairs = [(group, theirs[size]) for size, group in ours.items() if size in theirs]
        if not pairs:
            raise UserError(
                f"layer groups of student and teacher pair in order, or by resolution. Received: {_sizes(student)} in "
                f"{student.model.name!r} and {_sizes(teacher)} in {teacher.model.name!r}; name them by student.groups and teacher.groups"
            )
        for network, kept in ((student, [pair[0] for pair in pairs]), (teacher, [pair[1] for pair in pairs])):
            for group in network.groups:
                if group not in kept:
                    _LOG.warning("%s: the group of %s has no partner and is left out", network.model.name, _size(group))
        student = FeatureModel(student.model, [pair[0] for pair in pairs], student.tap)
        teacher = FeatureModel(teacher.model, [pair[1] for pair in pairs], teacher.tap)
    for group, partner in zip(student.groups, teacher.groups, strict=True):
        if group.shape[:2] != partner.shape[:2]:
            _LOG.warning("the student's group of %s is resized for the teacher's of %s", _size(group), _size(partner))
    return student, teacher


def pair_groups(student: FeatureModel, teacher: FeatureModel) -> list[tuple[LayerGroup, LayerGroup]]:
    """The groups of two networks that are aligned: (student's, teacher's).

    Raises:
        UserError: if there are not as many.
    """
    if len(student.groups) != len(teacher.groups):
        raise UserError(
            f"student and teacher must have as many layer groups. Received: {len(student.groups)} in {student.model.name!r} "
            f"and {len(teacher.groups)} in {teacher.model.name!r}; dfa_tf.pairing.align pairs them"
        )
    return list(zip(student.groups, teacher.groups, strict=True))


def _size(group: LayerGroup) -> str:
    return f"{group.height}x{group.width}"


def _sizes(network: FeatureModel) -> list[str]:
    return [_size(group) for group in network.groups]
