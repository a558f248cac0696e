"""Checkpoints: whole or not there, the last ones kept, damaged ones set aside, and of one configuration alone."""

import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from dfa_tf.config import CheckpointConfig
from dfa_tf.errors import UserError
from dfa_tf.training.checkpoints import Checkpoints

STAGE = {"config_hash": "abc", "config": {"seed": 0}}


def variables(*values: float) -> list[keras.Variable]:
    return [keras.Variable(np.full(2, value, np.float32)) for value in values]


def opened(folder: Path, stage: dict[str, Any] = STAGE, keep: int = 2) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", CheckpointConfig(every=10, keep=keep), stage)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 10 and 20."""
    checkpoints = opened(tmp_path)
    checkpoints.begin()
    for step in (10, 20):
        checkpoints.save(
            step, {"networks": variables(step, -step), "optimizer": variables(step + 0.5)}, {"history": [{"loss": 0.1 * step}]}
        )
    return tmp_path


def files(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("*.npz"))


def test_a_state_comes_back_as_it_was(two: Path) -> None:
    saved = opened(two).latest()
    assert saved is not None
    assert saved.step == 20
    assert saved.notes["history"] == [{"loss": 2.0}]
    networks, optimizer = variables(0, 0), variables(0)
    saved.assign("networks", networks)
    saved.assign("optimizer", optimizer)
    assert [variable.numpy().tolist() for variable in networks + optimizer] == [[20, 20], [-20, -20], [20.5, 20.5]]


def test_more_than_ten_variables_keep_their_order(tmp_path: Path) -> None:
    checkpoints = opened(tmp_path)
    checkpoints.begin()
    checkpoints.save(10, {"networks": variables(*range(12))}, {})
    back, saved = variables(*[0] * 12), checkpoints.latest()
    assert saved is not None
    saved.assign("networks", back)
    assert [float(variable.numpy()[0]) for variable in back] == list(range(12))


def test_the_last_ones_are_kept(two: Path) -> None:
    opened(two, keep=3).save(30, {}, {})
    assert [file.name[:10] for file in files(two)] == ["0000000010", "0000000020", "0000000030"]
    opened(two, keep=1).save(40, {}, {})
    assert [file.name[:10] for file in files(two)] == ["0000000040"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied"])
def test_a_damaged_checkpoint_is_set_aside_with_a_warning(two: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    newest = files(two)[-1]
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    newest.write_bytes({"truncated": content[:-1], "flipped": content, "emptied": b""}[damage])
    with caplog.at_level(logging.WARNING):
        saved = opened(two).latest()
    assert saved is not None
    assert saved.step == 10
    assert f"{newest} is damaged" in caplog.text
    assert (newest.parent / f"damaged-{newest.name}").exists()
    assert not newest.exists()


def test_where_all_are_damaged_there_is_none(two: Path) -> None:
    for file in files(two):
        file.write_bytes(b"no checkpoint")
    assert opened(two).latest() is None


def test_checkpoints_are_of_one_configuration(two: Path) -> None:
    other = opened(two, {"config_hash": "def", "config": {"seed": 1}})
    assert other.latest() is None
    assert other.stage() == STAGE
    assert files(two)
    other.begin()
    assert files(two) == []
    assert other.stage()["config_hash"] == "def"


def test_to_begin_the_same_stage_again_keeps_them(two: Path) -> None:
    opened(two).begin()
    assert len(files(two)) == 2


def test_parts_have_checkpoints_of_their_own_and_are_cleared_with_the_whole(two: Path) -> None:
    whole = opened(two)
    part = whole.part("repetition2")
    assert part.latest() is None
    part.save(7, {}, {})
    newest = opened(two).part("repetition2").latest()
    assert newest is not None
    assert newest.step == 7
    whole.clear()
    assert not (two / "checkpoints").exists()
    assert whole.part("repetition2").latest() is None


def test_the_seconds_of_all_processes_add_up(two: Path) -> None:
    first = opened(two)
    saved = first.latest()
    assert saved is not None
    assert 0 < first.seconds_before < 60
    first.seconds_before = 100.0
    first.save(30, {}, {})
    second = opened(two)
    second.latest()
    assert 100 < second.seconds_before < 160


def test_variables_of_another_program_are_refused(two: Path) -> None:
    saved = opened(two).latest()
    assert saved is not None
    for wrong in (variables(0), [keras.Variable(np.zeros(3, np.float32)), *variables(0)]):
        with pytest.raises(UserError, match=r"same version of the program.*networks, step 20.*--overwrite"):
            saved.assign("networks", wrong)


def test_an_interrupted_write_leaves_no_checkpoint(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened(two).save(30, {"networks": variables(1.0)}, {})
    assert [file.name[:10] for file in files(two)] == ["0000000010", "0000000020"]
