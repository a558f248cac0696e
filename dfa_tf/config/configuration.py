"""The configuration of a run: frozen and validated, read from JSON, changed by dotted names."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import pydantic
from pydantic import JsonValue

from dfa_tf.config import overrides, stage_fields
from dfa_tf.config.schema import Fields
from dfa_tf.config.space import TuneConfig
from dfa_tf.errors import UserError


class Config(Fields):
    """All settings of a run."""

    @pydantic.model_validator(mode="after")
    def _tunable(self) -> Self:
        """Checks each value of the search space against its field alone; a trial shows whether values go together."""
        for name, domain in self.tune.space.items():
            for value in domain.extremes:
                try:
                    self.trial({name: value})
                except overrides.DisagreementError:
                    continue
                except UserError as error:
                    raise ValueError(f"tune.space: {error}") from None
        return self

    def to_json(self) -> str:
        """The configuration as JSON text; `from_json` reads it back equal."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Config":
        """Reads and validates JSON text.

        Raises:
            UserError: naming the field, what was received, and the nearest right name.
        """
        with overrides.explained():
            return cls.model_validate_json(text)

    def replace(self, values: Mapping[str, Any]) -> "Config":
        """A copy with fields replaced.

        Args:
            values: by the dotted name of a field, or of a key inside one, such as `distil.methods.kd`; set in this order.

        Raises:
            UserError: if a field is unknown or a value does not fit.

        Examples:
            >>> Config().replace({"search.mode": "joint", "train.epochs": 3}).train.epochs
            3
        """
        tree = self.model_dump()
        for name, value in values.items():
            overrides.assign(tree, name, value)
        with overrides.explained():
            return Config.model_validate(tree)

    def override(self, assignments: Sequence[str]) -> "Config":
        """A copy with fields replaced, as `--set` does on the command line.

        Args:
            assignments: `"key.path=value"` each; the value is JSON, or else a string. The last one for a field counts.

        Raises:
            UserError: if a field is unknown or a value does not fit.

        Examples:
            >>> Config().override(["search.mode=joint", "train.epochs=3"]).train.epochs
            3
        """
        return self.replace(overrides.parse(assignments))

    def trial(self, values: Mapping[str, JsonValue]) -> "Config":
        """A copy for one trial of the tuning: with these values by dotted name, and without a search space.

        Raises:
            UserError: if a field is unknown, a value does not fit it, or values do not go together.
        """
        return self.model_copy(update={"tune": TuneConfig()}).replace(values)

    def stage_fields(self, stage: str) -> dict[str, Any]:
        """The fields that a stage reads, without paths.

        Args:
            stage: one of `STAGES`.

        Raises:
            UserError: if there is no such stage.
        """
        return stage_fields.stage_fields(self, stage)

    def stage_hash(self, stage: str, *inputs: str) -> str:
        """The hash of the fields that a stage reads.

        Args:
            stage: one of `STAGES`.
            inputs: digests of the artifacts that the stage reads.
        """
        return stage_fields.stage_hash(self, stage, *inputs)
