"""What a description of networks says."""

import dataclasses
from typing import Any

from dfa_tf.networks.cost import Memory
from dfa_tf.networks.groups import LeftOut


@dataclasses.dataclass(frozen=True)
class GroupDescription:
    """A layer group. Its costs are those of all layers behind the group before it, of the first one with the stem's.

    Attributes:
        blocks: names of the candidates.
        shape: height, width, channels of each.
        stride: of the image's height and width, to the nearest power of two.
        parameters: trainable and frozen ones, without BatchNorm's statistics.
        macs: multiply-accumulates of one image.
    """

    blocks: tuple[str, ...]
    shape: tuple[int, int, int]
    stride: tuple[float, float]
    parameters: int
    macs: int


@dataclasses.dataclass(frozen=True)
class NetworkDescription:
    """A classifier.

    Attributes:
        name: of its model.
        image_shape: height, width, channels.
        num_classes: number of logits.
        parameters: as of a group, of the whole network.
        macs: of the whole network.
        macs_by_type: by the class of the layers.
        not_counted: layers whose multiply-accumulates are not known and not in the sum.
        bytes: of all weights in float32, BatchNorm's statistics among them; a `.keras` file holds some KiB more.
        tap: where the block outputs are read.
        groups: from the image to the logits.
        head: parameters and MACs of what follows the last group.
        left_out: what looked like a candidate and is none.
    """

    name: str
    image_shape: tuple[int, ...]
    num_classes: int
    parameters: int
    macs: int
    macs_by_type: dict[str, int]
    not_counted: tuple[str, ...]
    bytes: int
    tap: str
    groups: tuple[GroupDescription, ...]
    head: tuple[int, int]
    left_out: tuple[LeftOut, ...]


@dataclasses.dataclass(frozen=True)
class ConnectorDescription:
    """What brings one network's feature to the other's shape.

    Attributes:
        source: height, width, channels of what comes in.
        target: of what goes out.
        parameters: its own.
    """

    source: tuple[int, int, int]
    target: tuple[int, int, int]
    parameters: int


@dataclasses.dataclass(frozen=True)
class PairDescription:
    """A group of the teacher and the student's group that it teaches.

    Attributes:
        teacher: number of the group, from 1.
        student: likewise.
        candidates: the blocks of the teacher's group, which a search weighs.
        to_teacher: connector of search and distillation.
        to_student: connector of the search alone.
    """

    teacher: int
    student: int
    candidates: int
    to_teacher: ConnectorDescription
    to_student: ConnectorDescription


@dataclasses.dataclass(frozen=True)
class Description:
    """A network, or a teacher and its student.

    Attributes:
        teacher: the network, where it is alone.
        student: None where there is none.
        pairs: groups that pair, from the image to the logits.
        rule: how they pair: `"in order"` or `"by stride"`; empty without a student.
        memory: estimate for a training step of stage 2, or of the network alone.
        batch_size: that the memory is for.
        precision: of the networks.
    """

    teacher: NetworkDescription
    student: NetworkDescription | None
    pairs: tuple[PairDescription, ...]
    rule: str
    memory: Memory
    batch_size: int
    precision: str

    @property
    def compression(self) -> dict[str, float]:
        """How many times as much the teacher has: of `parameters`, of `macs`; empty without a student."""
        if self.student is None:
            return {}
        ours, theirs = self.student, self.teacher
        return {"parameters": theirs.parameters / ours.parameters, "macs": theirs.macs / ours.macs}

    def alone(self, who: str) -> list[int]:
        """Numbers, from 1, of the groups of the `"teacher"` or the `"student"` that have no partner."""
        network, paired = getattr(self, who), {getattr(pair, who) for pair in self.pairs}
        return [] if network is None else [number for number in range(1, len(network.groups) + 1) if number not in paired]

    @property
    def config(self) -> dict[str, Any]:
        """The groups that pair, as a configuration names them: in its order group i teaches group i."""
        networks = {"teacher": self.teacher} | ({"student": self.student} if self.student else {})
        kept = {who: [getattr(pair, who) for pair in self.pairs] or range(1, len(networks[who].groups) + 1) for who in networks}
        return {who: {"groups": [list(networks[who].groups[number - 1].blocks) for number in kept[who]]} for who in networks}

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values; what stands under `config` is a part of a configuration."""
        tree = dataclasses.asdict(self)
        for who in ("teacher", "student"):
            if tree[who] is not None:
                tree[who]["head"] = dict(zip(("parameters", "macs"), tree[who]["head"], strict=True))
                tree[who]["left_out"] = [entry._asdict() for entry in getattr(self, who).left_out]
        more = {"memory": {**self.memory._asdict(), "total": self.memory.total}, "compression": self.compression}
        return {**tree, **more, "alone": {who: self.alone(who) for who in ("teacher", "student")}, "config": self.config}
