"""The phases of a training, in whole epochs."""

from collections.abc import Mapping
from typing import NamedTuple

from dfa_tf.distillation.objective import USUAL
from dfa_tf.errors import UserError
from dfa_tf.methods import Method, Phase


class PlannedPhase(NamedTuple):
    """Attributes: the phase; the method that declares it, empty for the usual training; its epochs."""

    phase: Phase
    method: str
    epochs: int


def planned(methods: Mapping[str, Method], epochs: int) -> list[PlannedPhase]:
    """The phases that a method declares, and the usual training for the remaining epochs.

    Raises:
        UserError: if several methods declare phases, or a phase does not fit the epochs.
    """
    declaring = [name for name, method in methods.items() if method.phases]
    if len(declaring) > 1:
        raise UserError(f"only one method with a phase of its own can be used at a time. Received: {declaring}")
    plan, done, fraction = list[PlannedPhase](), 0, 0.0
    for name in declaring:
        for phase in methods[name].phases:
            # The ends are rounded, not the lengths: rounded lengths could add up to more than all epochs.
            fraction += phase.fraction
            count = round(fraction * epochs) - done
            if phase.fraction and phase.method_weight and not count:
                raise UserError(
                    f"a phase of {name} takes {phase.fraction:g} of the epochs, which must be at least one. Received: {epochs} epochs"
                )
            plan.append(PlannedPhase(phase, name, count))
            done += count
    if done > epochs:
        raise UserError(f"the phases of {declaring[0]} take more than the {epochs} epochs of the training")
    return [part for part in [*plan, PlannedPhase(USUAL, "", epochs - done)] if part.epochs]
