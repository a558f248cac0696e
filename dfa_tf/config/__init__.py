"""The configuration of a run. Importing it does not load TensorFlow."""

from dfa_tf.config.configuration import Config
from dfa_tf.config.overrides import explain, field_names, fields_of
from dfa_tf.config.sections import (
    AGGREGATIONS,
    GIVEN,
    CheckpointConfig,
    DataConfig,
    Distance,
    DistilConfig,
    NetworkConfig,
    Precision,
    SearchConfig,
    StudentConfig,
    Tap,
    TeacherConfig,
    TrainConfig,
)
from dfa_tf.config.space import Choice, Float, Int, TuneConfig
from dfa_tf.config.stage_fields import STAGES

__all__ = [
    "AGGREGATIONS",
    "GIVEN",
    "STAGES",
    "CheckpointConfig",
    "Choice",
    "Config",
    "DataConfig",
    "Distance",
    "DistilConfig",
    "Float",
    "Int",
    "NetworkConfig",
    "Precision",
    "SearchConfig",
    "StudentConfig",
    "Tap",
    "TeacherConfig",
    "TrainConfig",
    "TuneConfig",
    "explain",
    "field_names",
    "fields_of",
]
