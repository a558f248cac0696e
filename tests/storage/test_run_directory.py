"""The run directory: atomic files, one process at a time, and digests of contents."""

import contextlib
import math
import resource
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import keras
import pytest

from dfa_tf.errors import UserError
from dfa_tf.storage.files import atomic, write_json, write_text
from dfa_tf.storage.reading import differing, digest, read_result
from dfa_tf.storage.run_directory import RunDir


def fill(directory: Path, text: str) -> None:
    directory.mkdir()
    (directory / "file").write_text(text, encoding="utf-8")


# Atomic writes


def test_a_file_takes_its_place_on_success(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.keras"
    with atomic(path) as temporary:
        assert (temporary.parent.parent, temporary.name) == (path.parent, path.name)
        temporary.write_text("first", encoding="utf-8")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "first"
    write_text(path, "second")
    assert path.read_text(encoding="utf-8") == "second"
    assert list(path.parent.iterdir()) == [path]


def test_a_directory_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "saved_model"
    with atomic(path) as temporary:
        fill(temporary, "first")
    with atomic(path) as temporary:
        temporary.mkdir()
        (temporary / "other").touch()
    assert [entry.name for entry in path.iterdir()] == ["other"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_nothing_and_keeps_the_old_file(tmp_path: Path, old: bool, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    if old:
        write_text(path, "old")

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise error

    with pytest.raises(error):
        fail()
    assert [entry.read_text(encoding="utf-8") for entry in tmp_path.iterdir()] == ["old"] * old


@pytest.mark.parametrize("old", [False, True])
def test_a_failure_leaves_nothing_and_keeps_the_old_directory(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "directory"
    if old:
        fill(path, "old")

    def fail() -> None:
        with atomic(path) as temporary:
            fill(temporary, "half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 (raised just above)
        fail()
    assert [entry.read_text(encoding="utf-8") for entry in tmp_path.rglob("file")] == ["old"] * old
    assert list(tmp_path.iterdir()) == [path] * old


def test_a_directory_is_kept_where_nothing_was_written(tmp_path: Path) -> None:
    fill(tmp_path / "directory", "old")
    with pytest.raises(UserError, match="directory must be writable"), atomic(tmp_path / "directory"):
        pass
    assert (tmp_path / "directory" / "file").read_text(encoding="utf-8") == "old"


def test_a_disk_without_room_is_reported_and_the_old_file_kept(tmp_path: Path) -> None:
    write_text(tmp_path / "file.txt", "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(UserError, match=r"file.txt must be writable, with room for it on the disk. Received: .*File too large"):
            write_text(tmp_path / "file.txt", "a longer text than that")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()] == ["old"]


def test_a_file_does_not_take_the_place_of_a_directory(tmp_path: Path) -> None:
    fill(tmp_path / "config.json", "old")
    with pytest.raises(UserError, match="config.json must be writable"):
        write_text(tmp_path / "config.json", "new")
    assert (tmp_path / "config.json" / "file").read_text(encoding="utf-8") == "old"


def test_json_is_written_readably_and_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "value.json", {"a": [1, 2.5, None]})
    assert (tmp_path / "value.json").read_text(encoding="utf-8") == '{\n  "a": [\n    1,\n    2.5,\n    null\n  ]\n}\n'


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_json_refuses_what_is_no_number(tmp_path: Path, number: float) -> None:
    write_json(tmp_path / "value.json", {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "value.json", {"loss": number})
    assert (tmp_path / "value.json").read_text(encoding="utf-8") == '{\n  "loss": 1.0\n}\n'
    assert len(list(tmp_path.iterdir())) == 1


# Results and paths


def test_a_stage_without_a_result_has_none(tmp_path: Path) -> None:
    assert read_result(tmp_path) == {}
    write_json(tmp_path / "result.json", {"config_hash": "abc", "steps": 3})
    assert read_result(tmp_path) == {"config_hash": "abc", "steps": 3}


@pytest.mark.parametrize("text", ["", '{"config_hash": "ab', '["abc"]', "\udcff"])
def test_a_broken_result_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    assert read_result(tmp_path) == {}


def test_the_paths_of_a_run_are_where_the_readers_look(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    paths = [run.config, run.teacher, run.search, run.student("plain"), run.student("dfa+kd"), run.evaluation, run.export]
    expected = ["config.json", "teacher", "search", "distil/plain", "distil/dfa+kd", "evaluation", "export"]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == expected


# The lock


def test_the_lock_is_held_by_one_process_and_freed_when_it_dies(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    code = (
        "import sys, time\nfrom dfa_tf.storage.run_directory import RunDir\n"
        "with RunDir(sys.argv[1]).lock():\n    print('held', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            with pytest.raises(UserError, match="another process is working in the run directory"), run.lock():
                pass
        finally:
            other.send_signal(signal.SIGKILL)
    with run.lock():
        pass


def test_the_lock_is_freed_at_the_end_also_by_an_error(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with contextlib.suppress(ValueError), run.lock():
        raise ValueError
    with run.lock(), pytest.raises(UserError, match="another process"), run.lock():
        pass
    with run.lock():
        pass


def test_a_run_directory_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"the run directory must be writable\. Received: .*file"), RunDir(tmp_path / "file").lock():
        pass


# Digests


def small_model() -> keras.Model:
    return keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(2, name="b")], name="small")


def test_the_digest_of_a_file_is_its_sha_256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert digest(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_digest_of_a_model_ignores_when_and_where_it_was_saved(tmp_path: Path) -> None:
    """The copy that was loaded has other objects in other places of memory, of which Keras writes down the addresses."""
    model = small_model()
    first, second, third = (tmp_path / f"{name}.keras" for name in ("first", "second", "third"))
    model.save(first)
    time.sleep(1.01)  # the date is in whole seconds
    model.save(second)
    keras.models.load_model(first).save(third)
    assert first.read_bytes() != second.read_bytes()
    assert digest(first) == digest(second) == digest(third)


def test_the_digest_of_a_model_changes_with_a_weight_or_a_layer(tmp_path: Path) -> None:
    model = small_model()
    model.save(tmp_path / "model.keras")
    model.weights[-1].assign([0.0, 1e-6])
    model.save(tmp_path / "weight.keras")
    assert digest(tmp_path / "model.keras") != digest(tmp_path / "weight.keras")

    other = keras.Sequential(
        [keras.layers.Input((3,)), keras.layers.Dense(4, activation="relu", name="a"), keras.layers.Dense(2, name="b")]
    )
    other.set_weights(model.get_weights())
    other.name = "small"
    other.save(tmp_path / "layer.keras")
    weights = [zipfile.ZipFile(tmp_path / f"{name}.keras").read("model.weights.h5") for name in ("weight", "layer")]
    assert weights[0] == weights[1]
    assert digest(tmp_path / "weight.keras") != digest(tmp_path / "layer.keras")


# Differences


def test_differing_names_the_fields_by_their_dotted_names() -> None:
    old = {"seed": 0, "train": {"epochs": 1, "decay": 0.2}, "gone": 1, "methods": {"dfa": None}}
    new = {"seed": 0, "train": {"epochs": 2, "decay": 0.2}, "methods": None}
    assert differing(old, old) == []
    assert differing(old, new) == ["gone", "methods", "train.epochs"]
    assert differing(new, old) == differing(old, new)
