"""Feature aggregation: the weighted sum of a group's block outputs, and the weights as an artifact."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import keras
import numpy as np
import pydantic
import tensorflow as tf
from pydantic import BaseModel, ConfigDict, Field, Strict

from dfa_tf.errors import UserError, shortened
from dfa_tf.networks.features import FeatureModel
from dfa_tf.storage.files import write_text
from dfa_tf.storage.reading import read_json


def aggregate(candidates: Sequence[tf.Tensor], weights: tf.Tensor) -> tf.Tensor:
    """A = sum_j alpha_j T_j (Eq. 2 of the paper).

    Args:
        candidates: the N block outputs T_j of a group, `[B, H, W, C]` each.
        weights: the factor on each candidate of each example, float32 `[B, N]`.

    Returns:
        The feature aggregation, float32 `[B, H, W, C]`.

    Examples:
        >>> blocks = [tf.fill([1, 2, 2, 3], 4.0), tf.fill([1, 2, 2, 3], 8.0)]
        >>> float(aggregate(blocks, tf.constant([[0.25, 0.75]]))[0, 0, 0, 0])
        7.0
    """
    columns = tf.unstack(weights[:, :, tf.newaxis, tf.newaxis, tf.newaxis], num=len(candidates), axis=1)
    return tf.add_n([column * tf.cast(candidate, tf.float32) for column, candidate in zip(columns, candidates, strict=True)])


def candidate_weights(candidates: Sequence[tf.Tensor], alpha: tf.Tensor, *, standardise: bool) -> tf.Tensor:
    """The factor on each candidate of each example.

    Args:
        candidates: the N block outputs of a group, `[B, H, W, C]` each.
        alpha: aggregation weights, `[N]`.
        standardise: divide by the candidate's root mean square, example by example, so that its
            magnitude does not decide.

    Returns:
        Float32 `[B, N]`.
    """
    weights = tf.tile(tf.cast(alpha, tf.float32)[tf.newaxis], [tf.shape(candidates[0])[0], 1])
    if standardise:
        squares = [tf.reduce_mean(tf.square(tf.cast(candidate, tf.float32)), axis=[1, 2, 3]) for candidate in candidates]
        weights = weights * tf.math.rsqrt(tf.stack(squares, axis=1) + 1e-12)
    return weights


def entropy(alpha: tf.Tensor) -> tf.Tensor:
    """-sum_j alpha_j ln alpha_j, in nats: 0 if one weight is 1, ln N if all are equal."""
    return -tf.reduce_sum(tf.math.xlogy(alpha, alpha), axis=-1)


class Aggregation(keras.layers.Layer):
    """The aggregation of one group under search: alpha = softmax(beta) (Eq. 6).

    Attributes:
        beta: architecture logits, float32 `[N]`.
    """

    def __init__(self, beta: Sequence[float] | np.ndarray, *, standardise: bool = False, name: str | None = None) -> None:
        super().__init__(name=name, dtype="float32")
        initial = np.asarray(beta, np.float32)
        self.beta = self.add_weight(shape=initial.shape, initializer=lambda shape, dtype=None: tf.constant(initial), name="beta")
        self.standardise = standardise
        self.built = True

    @property
    def alpha(self) -> tf.Tensor:
        """Aggregation weights, float32 `[N]`; they sum to 1."""
        return tf.nn.softmax(self.beta)

    def call(self, candidates: Sequence[tf.Tensor]) -> tf.Tensor:
        """`[B, H, W, C]` each to `[B, H, W, C]`."""
        return aggregate(candidates, candidate_weights(candidates, self.alpha, standardise=self.standardise))


class GroupWeights(BaseModel):
    """The aggregation weights of one group.

    Attributes:
        blocks: names of the candidates.
        beta: architecture logits; None where the weights were not searched.
        alpha: aggregation weights, which sum to 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    blocks: Annotated[tuple[str, ...], Strict(False)]
    beta: Annotated[tuple[float, ...], Strict(False)] | None = None
    alpha: Annotated[tuple[float, ...], Strict(False)]

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def entropy(self) -> float:
        """The entropy of alpha, in nats."""
        return max(0.0, float(entropy(tf.constant(self.alpha, tf.float64))))  # for one-hot weights TensorFlow returns -0.0

    # A validator before the schema's own turns JSON arrays into lists, which strict tuples refuse: hence Strict(False).
    @pydantic.model_validator(mode="before")
    @classmethod
    def _derived(cls, value: object) -> object:
        return {key: item for key, item in value.items() if key != "entropy"} if isinstance(value, dict) else value

    @pydantic.model_validator(mode="after")
    def _agree(self) -> Self:
        lengths = {len(self.blocks), len(self.alpha), len(self.beta if self.beta is not None else self.alpha)}
        if len(lengths) > 1 or not self.alpha:
            raise ValueError(f"blocks, beta and alpha must be of one length. Received: {sorted(lengths)}")
        if min(self.alpha) < 0 or abs(sum(self.alpha) - 1) > 1e-4:
            raise ValueError(f"alpha must be positive and sum to 1. Received: {shortened(list(self.alpha))}")
        return self


class AggregationWeights(BaseModel):
    """The result of a search, as `search/alphas.json` holds it.

    Attributes:
        teacher: name of the teacher's model.
        data: name of the data set.
        seed: of the search.
        config_hash: of the search; empty where the weights were not searched.
        standardise: whether candidates are divided by their root mean square before the sum.
        groups: the weights by group.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Literal[1] = Field(1, alias="schema")
    teacher: str
    data: str = ""
    seed: int = 0
    config_hash: str = ""
    standardise: bool = False
    groups: tuple[GroupWeights, ...] = Field(min_length=1)

    @classmethod
    def load(cls, path: str | os.PathLike[str], teacher: FeatureModel | None = None) -> "AggregationWeights":
        """Reads `alphas.json`.

        Args:
            path: of the file.
            teacher: if given, it must have the same groups and blocks.

        Raises:
            UserError: if the file holds no aggregation weights, or those of another teacher.
        """

        def parse(content: bytes) -> "AggregationWeights":
            try:
                return cls.model_validate_json(content)
            except pydantic.ValidationError as error:
                first = error.errors()[0]
                place, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
                received = "" if "Received" in message or not place else f". Received: {shortened(first['input'])}"
                raise UserError(f"{os.fspath(path)} is not a file of aggregation weights: {place[:80]} {message}{received}") from None

        weights: AggregationWeights = read_json(path, "aggregation weights", parse)
        if teacher is not None:
            weights.check(teacher)
        return weights

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `alphas.json` atomically."""
        write_text(Path(path), json.dumps(self.model_dump(mode="json", by_alias=True), indent=2, allow_nan=False) + "\n")

    def check(self, teacher: FeatureModel) -> None:
        """Raises UserError unless the groups and blocks are those of the teacher."""
        own = [list(group.blocks) for group in self.groups]
        if own != teacher.block_names():
            raise UserError(
                f"aggregation weights must be for the teacher's blocks {teacher.block_names()}. "
                f"Received: weights for {shortened(self.teacher)} with {shortened(own)}"
            )

    def discretised(self) -> "AggregationWeights":
        """One-hot weights: each group's largest weight (the first of equal ones) becomes 1, the others 0."""

        def one_hot(alpha: Sequence[float]) -> tuple[float, ...]:
            return tuple(np.eye(len(alpha))[int(np.argmax(alpha))].tolist())

        groups = tuple(GroupWeights(blocks=group.blocks, alpha=one_hot(group.alpha)) for group in self.groups)
        return self.model_copy(update={"groups": groups})

    @classmethod
    def given(cls, alphas: Sequence[Sequence[float]], teacher: FeatureModel, *, standardise: bool = False) -> "AggregationWeights":
        """Weights given by hand.

        Args:
            alphas: for each group of the teacher, a weight for each of its blocks: not negative, with sum 1.
            teacher: the weights are for its groups.
            standardise: as in a search.

        Raises:
            UserError: if the weights do not have this form.
        """
        counts = [len(blocks) for blocks in teacher.block_names()]
        if [len(alpha) for alpha in alphas] != counts:
            raise UserError(f"given weights must have one for each block, {counts} by group. Received: {[list(alpha) for alpha in alphas]}")
        try:
            groups = tuple(
                GroupWeights(blocks=tuple(blocks), alpha=tuple(map(float, alpha)))
                for blocks, alpha in zip(teacher.block_names(), alphas, strict=True)
            )
        except pydantic.ValidationError as error:
            raise UserError(f"given weights: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
        return cls(teacher=teacher.model.name, standardise=standardise, groups=groups)

    @classmethod
    def by_rule(cls, rule: str, teacher: FeatureModel, *, seed: int = 0, standardise: bool = False) -> "AggregationWeights":
        """Weights that are not searched.

        Args:
            rule: `"last"` or `"first"` (all weight on one block), `"average"` (all equal) or `"random"` (uniform over the simplex, by
                seed).
            teacher: the weights are for its groups.
            seed: of `"random"`.
            standardise: as in a search, so that the two can be compared.

        Raises:
            UserError: if the rule is unknown.

        Examples:
            >>> from dfa_tf import plugins
            >>> teacher = plugins.build("models", "wrn_16_1", image_shape=(8, 8, 1), num_classes=10)
            >>> weights = AggregationWeights.by_rule("average", FeatureModel.from_model(teacher))
            >>> [group.alpha for group in weights.groups]
            [(0.5, 0.5), (0.5, 0.5), (0.5, 0.5)]
        """
        random = np.random.default_rng(seed)

        def alpha(count: int) -> np.ndarray:
            if rule == "random":
                return random.dirichlet(np.ones(count))
            if rule == "average":
                return np.full(count, 1 / count)
            if rule in ("first", "last"):
                return np.eye(count)[0 if rule == "first" else -1]
            raise UserError(f"aggregation must be last, first, average or random. Received: {rule!r}")

        groups = tuple(
            GroupWeights(blocks=tuple(blocks), beta=None, alpha=tuple(alpha(len(blocks)).tolist())) for blocks in teacher.block_names()
        )
        return cls(teacher=teacher.model.name, seed=seed, standardise=standardise, groups=groups)


def spread(weights: Sequence[AggregationWeights]) -> list[dict[str, float | int | str]]:
    """The variation of aggregation weights between searches of one teacher.

    Args:
        weights: of each search; at least one.

    Returns:
        A row for each group and block: its number and name, and mean, sample standard deviation (0 for one search), smallest and
        largest alpha.
    """
    rows: list[dict[str, float | int | str]] = []
    for number, groups in enumerate(zip(*(each.groups for each in weights), strict=True), start=1):
        alphas = np.array([group.alpha for group in groups])
        for block, column in zip(groups[0].blocks, alphas.T, strict=True):
            deviation = float(column.std(ddof=1)) if len(column) > 1 else 0.0
            measured = {"mean": float(column.mean()), "std": deviation, "min": float(column.min()), "max": float(column.max())}
            rows.append({"group": number, "block": block, **measured})
    return rows
