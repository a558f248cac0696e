"""Keras' own distillation losses pass through the Distiller, also those that name layers."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras.distillation import FeatureDistillation, LogitsDistillation
from steps import IMAGES, step

from dfa_tf import plugins
from dfa_tf.config import Config
from dfa_tf.distillation.distil import distil
from dfa_tf.distillation.distiller import Distiller
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Splits
from dfa_tf.networks.features import FeatureModel

Tiny = Callable[..., FeatureModel]


def test_its_logits_loss_is_kd(tiny: Tiny) -> None:
    student, teacher = tiny(4, 1, seed=1), tiny(6, 1, seed=2)
    # By its name, which is the default, Keras 3.15 takes the divergence of the logits themselves.
    loss = LogitsDistillation(temperature=3.0, loss=keras.losses.KLDivergence())
    kd = plugins.build("losses", "kd", student, teacher, temperature=3.0)
    logs = step(Distiller(student, teacher, {"keras": loss, "kd": kd}, weights={"keras": 0.5, "kd": 0.25}))
    np.testing.assert_allclose(logs["keras"], logs["kd"], rtol=1e-4)
    np.testing.assert_allclose(logs["total_loss"], logs["cross_entropy"] + 0.75 * logs["kd"], rtol=1e-4)


def test_a_feature_loss_reads_the_layers_that_it_names(tiny: Tiny) -> None:
    student, teacher = tiny(4, 1, seed=1), tiny(4, 2, seed=2)
    loss = FeatureDistillation(loss="mse", teacher_layer_name="group1_block2_conv", student_layer_name="group1_block1_bn")
    ours = keras.Model(student.model.input, student.model.get_layer("group1_block1_bn").output)(IMAGES, training=True)
    theirs = keras.Model(teacher.model.input, teacher.model.get_layer("group1_block2_conv").output)(IMAGES, training=False)
    logs = step(Distiller(student, teacher, {"hint": loss}))
    np.testing.assert_allclose(logs["hint"], np.square(np.subtract(ours, theirs)).mean(), rtol=1e-4)


def test_a_layer_that_is_not_there_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="hint: In teacher model: No such layer: nowhere"):
        Distiller(tiny(), tiny(), {"hint": FeatureDistillation(teacher_layer_name="nowhere")})


def test_it_stands_beside_the_methods_of_the_configuration(tiny: Tiny, splits: Splits, quick: Config) -> None:
    config = quick.override(['distil.methods={"kd": 0.5}'])
    losses = {"keras": (LogitsDistillation(temperature=2.0), 2.0)}
    (row, *_) = distil(tiny(6, 1, seed=2), tiny(4, 1, seed=1), splits, config, keras_losses=losses).history
    np.testing.assert_allclose(row["total_loss"], row["cross_entropy"] + 0.5 * row["kd"] + 2 * row["keras"], rtol=1e-4)
