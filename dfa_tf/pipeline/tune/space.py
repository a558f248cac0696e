"""The space of a tuning: whether its fields affect a student, and what identifies a student."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import JsonValue

from dfa_tf.config import Config
from dfa_tf.errors import UserError
from dfa_tf.pipeline.building import check_options
from dfa_tf.pipeline.stages import SearchStage, student_stages


def decisive(config: Config) -> list[Any]:
    """Everything that identifies a student of a trial, given the teacher: the fields that its stages read, and the files that they name."""
    search = config.stage_fields("search") if SearchStage in student_stages(config) else None
    return [config.stage_fields("distil"), search, config.student.path, config.distil.aggregation_file]


def identify(content: Any) -> str:
    """A name for a directory, by the hash of JSON content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def alternatives(config: Config) -> list[Config]:
    """The configuration without its space, and with each extreme of each field alone, where it agrees with the others."""
    found = [config.trial({})]
    for name, domain in config.tune.space.items():
        found += _agreeing(config, [{name: value} for value in domain.extremes])
    return found


def _agreeing(config: Config, several: Sequence[Mapping[str, JsonValue]]) -> list[Config]:
    found = []
    for values in several:
        try:
            found.append(config.trial(values))
        except UserError:  # the configuration has checked that each value fits its field; only values together can be wrong
            continue
    return found


def check_space(config: Config) -> None:
    """Raises UserError unless there is a space, each field in it affects the student, and each plug-in has its options."""
    space = config.tune.space
    if not space:
        raise UserError("tune.space must name a field and its values. Received: {}")
    bases = alternatives(config)
    for each in bases:
        check_options(each)
    for name, domain in space.items():
        several = [{name: value} for value in domain.extremes]
        if not any(_differ(_agreeing(base, several)) for base in bases):
            raise UserError(f"every field of tune.space must decide something of a student. Received: {name!r}, which decides nothing here")


def _differ(configs: Sequence[Config]) -> bool:
    """Whether configurations give different students; also where there are fewer than two."""
    return len(configs) < 2 or len({identify(decisive(config)) for config in configs}) > 1
