"""What is a user's own stays: hidden folders, links, and files beside those of a run. What is no file is told, and not waited for."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from handmade import write_run
from PIL import Image

import dfa_tf
from dfa_tf.aggregation.weights import AggregationWeights
from dfa_tf.config import CheckpointConfig, Config
from dfa_tf.data import image_folder
from dfa_tf.errors import UserError
from dfa_tf.export import runtimes
from dfa_tf.export.formats import check_replaceable
from dfa_tf.images import tfds_reader
from dfa_tf.images.image_files import read_picture
from dfa_tf.networks.keras_file import load_model
from dfa_tf.pipeline import compress as compression
from dfa_tf.pipeline import stage_runner
from dfa_tf.reporting.predictions import Predictions
from dfa_tf.reporting.run_reader import read_run
from dfa_tf.storage import scratch as scratches
from dfa_tf.storage.files import atomic, write_text
from dfa_tf.storage.reading import digest, read_bytes, read_json, read_own
from dfa_tf.storage.run_directory import RunDir
from dfa_tf.storage.scratch import remove_own, scratch_folder, sweep
from dfa_tf.training.cached_files import CachedFile, make_room
from dfa_tf.training.checkpoints import Checkpoints

STAGE = {"config_hash": "abc", "config": {"seed": 0}}


@pytest.fixture(autouse=True)
def _guard() -> Iterator[None]:
    """Ends a test that waits for ever."""

    def stop(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put(path: Path, text: str = "mine") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def said(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run directory in which every stage is done."""
    return write_run(tmp_path / "run")


@contextlib.contextmanager
def process(body: str, *arguments: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that writes `ready` once it is in the midst of its work; it is killed in the end."""
    modules = "".join(f"from dfa_tf.storage.{module} import *\n" for module in ("files", "run_directory", "scratch"))
    code = f"import sys, time\nfrom pathlib import Path\n{modules}{body}"
    with subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == "ready\n"
            yield started
        finally:
            started.send_signal(signal.SIGKILL)


WAIT = "print('ready', flush=True); time.sleep(60)"
WRITE = f"with atomic(Path(sys.argv[1])) as path:\n    path.mkdir(); (path / 'half').touch(); {WAIT}"


# The sweep


def test_hidden_folders_of_a_user_stay(tmp_path: Path) -> None:
    names = (
        ".2024-backup",
        ".123-model.keras",
        ".dfa_tf",
        ".dfa_tf-backup",
        ".dfa_tf-0123456789abcdef",
        "teacher/.7-old-x",
        "teacher/.dfa_tf-0123456789abcdef",
    )
    files = [put(tmp_path / "run" / name / "thesis.txt") for name in names]
    with RunDir(tmp_path / "run").lock():
        pass
    assert [said(file) for file in files] == ["mine"] * len(names)


def left(folder: Path) -> Path:
    """A scratch folder as a kill leaves it, with a file in it."""
    scratch = put(folder / ".dfa_tf-00000000000000ab" / "model.keras").parent
    (scratch / scratches._MARK).write_bytes(scratches._SIGNATURE)
    return scratch


@pytest.mark.parametrize("place", ["", "teacher", "distil/dfa+kd/checkpoints/repetition1", "tuning/students/a/teacher"])
def test_what_a_killed_process_has_left_is_removed(place: str, tmp_path: Path) -> None:
    scratch = left(tmp_path / place)
    with RunDir(tmp_path).lock():
        pass
    assert not scratch.exists()


@pytest.mark.parametrize("mark", ["", "other", "longer", "link", "fifo", "directory", "none"])
def test_a_folder_that_does_not_prove_who_made_it_stays(mark: str, tmp_path: Path) -> None:
    scratch = left(tmp_path / "run")
    path = scratch / scratches._MARK
    real = path.rename(tmp_path / "real")
    if mark == "link":
        path.symlink_to(real)
    elif mark == "fifo":
        os.mkfifo(path)
    elif mark == "directory":
        path.mkdir()
    elif mark != "none":
        path.write_bytes({"": b"", "other": b"mine", "longer": scratches._SIGNATURE + b"x"}[mark])
    sweep(tmp_path / "run")
    assert said(scratch / "model.keras") == "mine"


@pytest.mark.parametrize("mark", [None, b"", b"dfa_tf has made"])
def test_what_a_kill_leaves_before_the_mark_is_written_is_removed(mark: bytes | None, tmp_path: Path) -> None:
    scratch = tmp_path / ".dfa_tf-00000000000000ab"
    scratch.mkdir()
    if mark is not None:
        (scratch / scratches._MARK).write_bytes(mark)
    sweep(tmp_path)
    assert not scratch.exists()


def test_links_are_not_followed_by_the_sweep(tmp_path: Path) -> None:
    scratch = left(tmp_path / "elsewhere")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "data").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / ".dfa_tf-00000000000000cd").symlink_to(scratch)
    with RunDir(tmp_path / "run").lock():
        pass
    assert said(scratch / "model.keras") == "mine"


def test_what_a_link_in_a_left_folder_points_to_stays(tmp_path: Path) -> None:
    mine, scratch = put(tmp_path / "mine" / "thesis.txt"), left(tmp_path / "run")
    (scratch / "link").symlink_to(mine.parent)
    sweep(tmp_path / "run")
    assert not scratch.exists()
    assert said(mine) == "mine"


def test_the_folder_of_another_user_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = left(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: scratch.stat().st_uid + 1)
    sweep(tmp_path)
    assert scratch.exists()


def test_a_living_writer_is_left_alone_and_a_killed_one_swept(tmp_path: Path) -> None:
    target = tmp_path / "export" / "saved_model"
    with process(WRITE, target):
        with RunDir(tmp_path).lock():
            pass
        (half,) = target.parent.glob(".dfa_tf-*/saved_model/half")
    with RunDir(tmp_path).lock():
        pass
    assert not half.exists()
    assert list(target.parent.iterdir()) == []


def test_a_writer_that_is_killed_again_and_again_leaves_no_more_than_the_last_one(tmp_path: Path) -> None:
    for _ in range(2):
        with process(WRITE, tmp_path / "page"):
            assert len(list(tmp_path.iterdir())) == 1
    write_text(tmp_path / "page.html", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_what_is_left_in_the_system_s_folder_is_swept_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    mine = put(tmp_path / "dfa_tf-0123456789abcdef" / "thesis.txt")
    with process(f"with scratch_folder() as path:\n    (path / 'teacher.keras').touch(); {WAIT}"):
        with scratch_folder() as own:
            (other,) = tmp_path.glob("*/teacher.keras")
            assert own != other.parent
        assert other.exists()
    with scratch_folder():
        assert not other.parent.exists()
    assert list(tmp_path.rglob("*")) == [mine.parent, mine]


def test_the_networks_of_a_compress_lie_in_a_folder_that_is_swept(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def stop(*_: object, **__: object) -> None:
        (folder,) = {path.parent for path in tmp_path.rglob("*.keras")}
        assert scratches._SCRATCH.fullmatch(folder.name)
        sweep(tmp_path)
        assert sorted(path.name for path in folder.iterdir() if path.suffix) == ["student.keras", "teacher.keras"]
        raise ValueError("stopped")

    monkeypatch.setattr(compression, "_run_stages", stop)
    images, labels = np.zeros((60, 8, 8, 1), np.uint8), np.arange(60) % 10
    with pytest.raises(ValueError, match="stopped"):
        compression.compress(tiny(blocks=2).model, tiny().model, (images, labels), epochs=1, batch_size=10, verbose=False)
    assert list(tmp_path.iterdir()) == []


def test_nothing_else_is_made_for_a_time() -> None:
    """A folder of Python's `tempfile` would stay for ever after a kill."""
    package = Path(dfa_tf.__file__).parent
    assert [path for path in package.rglob("*.py") if re.search("TemporaryDirectory|mkdtemp", path.read_text(encoding="utf-8"))] == []


def test_a_kill_between_two_renames_loses_no_directory(tmp_path: Path) -> None:
    scratch = left(tmp_path)
    put(scratch / scratches.RETIRED / "saved_model" / "old.txt", "old")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["saved_model"]
    assert said(tmp_path / "saved_model" / "old.txt") == "old"


def test_a_directory_comes_back_where_the_new_one_cannot_take_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "saved_model" / "old.txt", "old")
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if source.parent.name.startswith(".dfa_tf-"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="saved_model must be writable"), atomic(tmp_path / "saved_model") as temporary:
        put(temporary / "new.txt")
    assert [path.name for path in tmp_path.rglob("*")] == ["saved_model", "old.txt"]


# The lock


@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "socket"])
def test_a_lock_that_is_no_file_is_refused_and_left_as_it_is(kind: str, tmp_path: Path) -> None:
    mine, lock = put(tmp_path / "thesis.txt"), tmp_path / "run" / ".lock"
    lock.parent.mkdir()
    if kind == "fifo":
        os.mkfifo(lock)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            directory = Path.cwd()
            os.chdir(lock.parent)  # the path of a socket may not be long
            try:
                listening.bind(lock.name)
            finally:
                os.chdir(directory)
    else:
        lock.symlink_to(mine if kind == "link" else tmp_path / "new.txt")
    with (
        pytest.raises(UserError, match=r"the lock of a run directory must be a regular file\. Received: .*\.lock"),
        RunDir(lock.parent).lock(),
    ):
        pass
    assert said(mine) == "mine"
    assert not (tmp_path / "new.txt").exists()


def test_a_lock_is_not_truncated(tmp_path: Path) -> None:
    lock = put(tmp_path / ".lock")
    with RunDir(tmp_path).lock():
        pass
    assert said(lock) == "mine"


# What is read


def a_fifo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [a_fifo, a_device])
@pytest.mark.parametrize(
    "name",
    [
        "teacher/result.json",
        "teacher/metrics.jsonl",
        "teacher/model.keras",
        "search/alphas.json",
        "search/trajectory.csv",
        "evaluation/predictions.npz",
        "export/parity.json",
    ],
)
def test_what_is_no_file_in_a_run_directory_is_told(name: str, make: Callable[[Path], None], run: RunDir) -> None:
    make(run.path / name)
    with pytest.raises(UserError, match=re.escape(name)):
        read_run(run.path)


READERS: dict[str, Callable[[Path], object]] = {
    "config.json": lambda path: read_json(path, "--config", Config.from_json),
    "alphas.json": AggregationWeights.load,
    "result.json": read_own,
    "model.keras": load_model,
    "digest.keras": digest,
    "photo.png": read_picture,
    "predictions.npz": Predictions.load,
    "student.tflite": runtimes.load,
    "student.onnx": runtimes.load,
    "student.keras": runtimes.load,
    "any": lambda path: read_bytes(path, "this"),
}


@pytest.mark.parametrize("make", [a_fifo, a_device, Path.mkdir])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_told_by_every_reader(name: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / name)
    with pytest.raises(UserError, match=re.escape(name)):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("name", ["variables/variables.index", "fingerprint.pb", "assets.extra/labels.txt"])
def test_what_is_no_file_in_a_saved_model_is_told(name: str, tmp_path: Path) -> None:
    put(tmp_path / "saved_model.pb")
    a_fifo(tmp_path / name)
    with pytest.raises(UserError, match="must be a model that bin/export.py has written.*Not a regular file, but a named pipe"):
        runtimes.load(tmp_path)


def test_what_is_no_file_in_a_folder_of_pictures_is_told(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "a.png")
    a_fifo(tmp_path / "cat" / "b.png")
    a_device(tmp_path / "dog" / "b.png")
    with pytest.raises(UserError, match="2 of 4 files .* are not readable pictures"):
        image_folder.build(data_dir=str(tmp_path))


@pytest.mark.parametrize("make", [a_fifo, a_device])
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "trees-train.tfrecord-00000-of-00001"])
def test_what_is_no_file_in_a_prepared_data_set_is_told(name: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "trees" / "1.0.0"
    for other in ("dataset_info.json", "features.json"):
        put(folder / other, "{}")
    make(folder / name)
    with pytest.raises(UserError, match=rf"a TFDS data set must have readable files\. Received: .*{re.escape(name)} \(Not a regular file"):
        tfds_reader.find("trees", tmp_path)


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(put(tmp_path / "file"))
    assert read_bytes(tmp_path / "link", "this") == b"mine"


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    a_fifo(tmp_path / "config.json")
    with pytest.raises(UserError, match="config.json must be writable.* It is a named pipe"):
        write_text(tmp_path / "config.json", "{}")
    assert (tmp_path / "config.json").is_fifo()


# What a stage removes


def opened(folder: Path, keep: int = 1) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", CheckpointConfig(every=1, keep=keep), STAGE)


def test_files_of_a_user_among_checkpoints_stay(tmp_path: Path) -> None:
    checkpoints = opened(tmp_path)
    checkpoints.begin()
    for part in (checkpoints, checkpoints.part("repetition1")):
        for step in (1, 2):
            part.save(step, {}, {})
    (own,) = (tmp_path / "checkpoints").glob("*.npz")
    names = ("2024-results.npz", "notes.txt", "backup/0000000001-" + "a" * 32 + ".npz", "repetition1/1-mine.npz")
    mine = [put(tmp_path / "checkpoints" / name) for name in names]
    checkpoints.save(3, {}, {})
    checkpoints.clear()
    assert not own.exists()
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(mine)


def test_no_trace_of_checkpoints_stays_where_there_is_nothing_else(tmp_path: Path) -> None:
    checkpoints = opened(tmp_path)
    checkpoints.begin()
    checkpoints.part("repetition1").save(1, {}, {})
    left(tmp_path / "checkpoints")
    checkpoints.clear()
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_no_file_is_told(tmp_path: Path) -> None:
    checkpoints = opened(tmp_path)
    checkpoints.begin()
    a_fifo(tmp_path / "checkpoints" / f"0000000009-{'a' * 32}.npz")
    with pytest.raises(UserError, match="a checkpoint must be a readable file.*named pipe"):
        checkpoints.latest()


def test_files_of_a_user_among_those_of_tensorboard_stay(tmp_path: Path) -> None:
    own = [put(tmp_path / "teacher" / name) for name in ("events.out.tfevents.1.host.2.0.v2", "repetition2/group1/events.out.tfevents.1.h")]
    mine = [put(tmp_path / "teacher" / name) for name in ("thesis.txt", "events.out.tfevents.txt", "mine/events.out.tfevents.1.h")]
    put(tmp_path / "elsewhere" / "events.out.tfevents.1.h")
    (tmp_path / "teacher" / "group2").symlink_to(tmp_path / "elsewhere")
    remove_own(tmp_path / "teacher", stage_runner._EVENTS)
    assert [path.exists() for path in own + mine] == [False] * 2 + [True] * 3
    assert not own[1].parent.parent.exists()
    assert said(tmp_path / "elsewhere" / "events.out.tfevents.1.h") == "mine"


def test_a_link_in_place_of_the_files_of_tensorboard_is_refused(tmp_path: Path) -> None:
    mine = put(tmp_path / "mine" / "events.out.tfevents.1.h")
    (tmp_path / "events").symlink_to(mine.parent)
    with pytest.raises(UserError, match="events must be a directory.*Received: a symbolic link"):
        stage_runner._StageFolder(tmp_path / "teacher", "abc", {}, opened(tmp_path), tmp_path / "events").is_done(replace=True)
    assert said(mine) == "mine"


def test_files_of_a_user_in_the_folder_of_teachers_outputs_stay(tmp_path: Path) -> None:
    own = put(tmp_path / f"{'a' * 32}.npy", "x" * 2000)
    mine = [put(tmp_path / name, "x" * 2000) for name in ("features.npy", "mine.npy.part", f"{'A' * 32}.npy", f"{'a' * 32}.npy.bak")]
    output = type("Output", (), {"dtype": "float32", "shape": (None, 100)})
    assert make_room(tmp_path, [CachedFile(tmp_path / f"{'b' * 32}.npy", 8, output)], 4000 / (1 << 30))
    assert [path.exists() for path in [own, *mine]] == [False, True, True, True, True]


@pytest.mark.parametrize("make", [a_fifo, lambda path: path.symlink_to(path.parent / "thesis.txt")])
def test_a_teacher_s_outputs_are_not_written_through_a_link_or_a_pipe(make: Callable[[Path], None], tmp_path: Path) -> None:
    mine, output = put(tmp_path / "thesis.txt"), type("Output", (), {"dtype": "float32", "shape": (None, 2)})
    file = CachedFile(tmp_path / f"{'b' * 32}.npy", 1, output)
    make(file.part)
    with pytest.raises(FileExistsError, match="is no regular file"), file.growing(0) as take:
        take(np.zeros((1, 2), np.float32))
    file.remove()
    assert said(mine) == "mine"
    assert os.path.lexists(file.part)


def test_an_export_does_not_replace_a_directory_with_files_of_a_user(tmp_path: Path) -> None:
    for name in ("saved_model.pb", "fingerprint.pb", "variables/variables.index", "assets.extra/labels.txt"):
        put(tmp_path / "saved_model" / name)
    (tmp_path / "saved_model" / "assets").mkdir()
    check_replaceable(tmp_path / "saved_model")
    put(tmp_path / "saved_model" / "assets.extra" / "warmup")
    with pytest.raises(UserError, match="must hold nothing but what an export writes.*'assets.extra/warmup'"):
        check_replaceable(tmp_path / "saved_model")
