"""Folders of pictures become data sets; each mistake in a folder is reported in one clear line."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dfa_tf import plugins
from dfa_tf.config import Config, DataConfig
from dfa_tf.errors import UserError
from dfa_tf.images.image_files import PictureFiles
from dfa_tf.images.splits import Source, split
from dfa_tf.pipeline.pipeline import run_stages
from dfa_tf.pipeline.stages import EvaluateStage, PlainStage, TeacherStage
from dfa_tf.storage.reading import read_result
from dfa_tf.storage.run_directory import RunDir

NOISE = np.random.default_rng(0).integers(0, 256, (100, 8, 6, 3)).astype(np.uint8)
PICTURES = {"cat": 5, "dog": 10}
"""Pictures per class in the folder that most tests use."""


def fill(folder: Path, counts: dict[str, int], pixels: np.ndarray = NOISE) -> Path:
    """Writes a folder of pictures for each class. All pictures differ; their order is that of their names."""
    number = 0
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(pixels[number].squeeze()).save(folder / name / f"{i:03}.png")
            number += 1
    return folder


def build(folder: Path, **options: Any) -> Source:
    return plugins.build("data", "image_folder", data_dir=str(folder), **options)


def everything(source: Source, part: str = "train") -> np.ndarray:
    pixels = getattr(source, part).pixels
    return pixels[np.arange(pixels.shape[0])]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill(tmp_path / "pets", PICTURES)


def test_folders_of_train_and_test_are_read_as_they_are(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"b": 3, "a": 2})
    fill(tmp_path / "test", {"b": 1, "a": 1}, NOISE[50:])
    source = build(tmp_path)
    assert source.class_names == ["a", "b"]
    np.testing.assert_array_equal(everything(source), NOISE[[3, 4, 0, 1, 2]])
    np.testing.assert_array_equal(everything(source, "test"), NOISE[[51, 50]])
    assert source.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert source.test is not None
    assert source.test.labels.tolist() == [0, 1]
    assert source.validation is None
    assert tmp_path.name in source.description


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_validation_pictures_are_the_test_set_or_beside_one_the_validation_split(name: str, tmp_path: Path) -> None:
    fill(tmp_path / "train", {"a": 4, "b": 4})
    fill(tmp_path / name, {"a": 1, "b": 2}, NOISE[50:])
    np.testing.assert_array_equal(everything(build(tmp_path), "test"), NOISE[50:53])
    fill(tmp_path / "test", {"a": 1, "b": 1}, NOISE[60:])
    source = build(tmp_path)
    np.testing.assert_array_equal(everything(source, "test"), NOISE[60:62])
    np.testing.assert_array_equal(everything(source, "validation"), NOISE[50:53])
    assert split(source, DataConfig(), seed=0).validation.labels.tolist() == [0, 1, 1]


def test_without_a_test_folder_a_fifth_is_held_out_by_class_and_always_the_same(folder: Path) -> None:
    source, again = build(folder), build(folder)
    assert source.test is not None
    assert (source.train.labels.tolist(), source.test.labels.tolist()) == ([0] * 4 + [1] * 8, [0] + [1] * 2)
    together = [picture.tobytes() for picture in (*everything(source), *everything(source, "test"))]
    assert set(together) == {picture.tobytes() for picture in NOISE[:15]}
    np.testing.assert_array_equal(everything(source, "test"), everything(again, "test"))


def test_the_share_of_the_test_set_is_an_option(folder: Path) -> None:
    assert build(folder, test_fraction=0.4).test.labels.tolist() == [0] * 2 + [1] * 4
    source = build(folder, test_fraction=0)
    assert source.test is None
    assert len(source.train) == 15


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert build(fill(tmp_path, {"bus": 5, "train": 5})).class_names == ["bus", "train"]


def test_hidden_files_and_files_beside_the_class_folders_are_passed_over(folder: Path) -> None:
    for name in (".DS_Store", "cat/.hidden.png", "licence.txt"):
        (folder / name).write_text("nothing")
    (folder / ".cache").mkdir()
    (folder / "dog" / ".thumbnails").mkdir()
    assert len(build(folder, test_fraction=0).train) == 15


def test_grey_pictures_are_asked_for_by_channels(folder: Path) -> None:
    assert build(folder).train.pixels.shape == (12, 8, 6, 3)
    source = build(folder, channels=1, test_fraction=0)
    assert source.train.pixels.shape == (15, 8, 6, 1)
    brightness = NOISE[:15] @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(everything(source)[..., 0], brightness, atol=0.51)
    assert len(source.mean) == 1


def test_pictures_of_several_sizes_need_one(folder: Path) -> None:
    Image.fromarray(NOISE[0][:5]).save(folder / "dog" / "009.png")
    with pytest.raises(
        UserError,
        match=r"pets must have one size: set data.options.image_size, as \[64, 64\]. Received: 2 sizes, from 5x6 to 8x6",
    ):
        build(folder)
    source = build(folder, image_size=[8, 6], test_fraction=0)
    assert source.train.pixels.shape == (15, 8, 6, 3)
    np.testing.assert_array_equal(everything(source)[:14], NOISE[:14])


def test_statistics_are_those_of_the_training_pictures(folder: Path) -> None:
    source = build(folder)
    np.testing.assert_allclose(source.mean, everything(source).mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(source.std, everything(source).std(axis=(0, 1, 2)))


def test_pictures_are_decoded_when_they_are_read(folder: Path) -> None:
    pixels = build(folder, test_fraction=0).train.pixels
    assert isinstance(pixels, PictureFiles)
    Image.fromarray(NOISE[99]).save(folder / "cat" / "002.png")
    np.testing.assert_array_equal(pixels[np.array([3, 2, 2])], NOISE[[3, 99, 99]])


def test_batches_are_those_of_the_same_pictures_in_memory(folder: Path) -> None:
    splits = split(build(folder), DataConfig(), seed=0)
    batch = next(iter((splits.train + splits.search).batches(6, seed=0)))
    np.testing.assert_array_equal(batch["images"], splits.source.train.pixels[batch["index"].numpy()])


# Mistakes


def damage(folder: Path) -> None:
    whole = (folder / "cat" / "001.png").read_bytes()
    (folder / "cat" / "001.png").write_bytes(whole[:-30])
    (folder / "dog" / "notes.txt").write_text("good dogs")


def test_corrupt_files_are_named_together(folder: Path) -> None:
    damage(folder)
    message = r"2 of 16 files in .*pets are not readable pictures \(PNG, .*\): cat/001.png, dog/notes.txt. Repair .*skip_corrupt=true"
    with pytest.raises(UserError, match=message):
        build(folder)


def test_of_many_corrupt_files_the_first_are_named(folder: Path) -> None:
    for i in range(8):
        (folder / "dog" / f"{i:03}.png").write_text("")
    with pytest.raises(UserError, match=r"8 of 15 files .*: dog/000.png, .*, dog/004.png and 3 more. Repair"):
        build(folder)


def test_corrupt_files_are_left_out_where_asked_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    damage(folder)
    with caplog.at_level(logging.WARNING, logger="dfa_tf"):
        source = build(folder, skip_corrupt=True, test_fraction=0)
    np.testing.assert_array_equal(everything(source), NOISE[[0, *range(2, 15)]])
    assert source.train.labels.tolist() == [0] * 4 + [1] * 10
    assert [record.message.partition(": ")[2] for record in caplog.records] == ["cat/001.png, dog/notes.txt; they are left out"]


def test_a_class_without_readable_pictures_is_refused(folder: Path) -> None:
    for path in (folder / "cat").iterdir():
        path.write_text("")
    with pytest.raises(UserError, match="class folders must contain pictures. Received: none in .*/pets/cat"):
        build(folder, skip_corrupt=True)


def wrong(tmp_path: Path, kind: str) -> Path:
    """A folder with one mistake."""
    root = tmp_path / "root"
    if kind == "missing":
        return root
    if kind == "a file":
        root.write_text("")
        return root
    fill(root / "train", {"a": 3, "b": 3})
    if kind == "no class":
        return root / "train" / "a"
    if kind == "one class":
        return fill(tmp_path / "one", {"a": 3})
    if kind == "empty class":
        (root / "train" / "c").mkdir()
    elif kind == "a level too high":
        return tmp_path
    elif kind == "other classes":
        fill(root / "test", {"a": 3, "c": 3})
    elif kind == "misnamed test":
        fill(root / "testing", {"a": 3, "b": 3})
    elif kind == "misnamed both":
        (root / "train").rename(root / "Training")
        fill(root / "Testing", {"a": 3, "b": 3})
    elif kind == "two validation sets":
        for name in ("val", "valid", "test"):
            fill(root / name, {"a": 3, "b": 3})
    elif kind == "few":
        (root / "train" / "a" / "000.png").unlink()
        (root / "train" / "a" / "001.png").unlink()
    return root


MISTAKES = {
    "missing": "data.data_dir must be a folder .* Received: .*root, which is not a folder",
    "a file": "data.data_dir must be a folder .* Received: .*root, which is not a folder",
    "no class": "train/a must contain a folder of pictures for each class, two or more. Received: no folder",
    "one class": "one must contain a folder of pictures for each class, two or more. Received: a",
    "empty class": "class folders must contain pictures. Received: none in .*root/train/c",
    "a level too high": "must contain a folder of pictures for each class, two or more. Received: root",
    "other classes": "root/test must have the same class folders as the training set. Received: only one of the two has b, c",
    "misnamed test": "the folder of test pictures beside .*/train must be called test. Received: testing",
    "misnamed both": "class folders must contain no folders, and sets must be called train and test. Received: .*Testing/a, .*Testing/b",
    "two validation sets": "must have one folder of validation pictures. Received: val, valid",
    "few": "every split needs images of every class",
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_wrong_folder_is_one_clear_line(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=MISTAKES[kind]):
        build(wrong(tmp_path, kind))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": [8]}, r"image_size must be height and width, .* as \[64, 64\]. Received: \[8\]"),
        ({"image_size": [0, 8]}, r"image_size .* Received: \[0, 8\]"),
        ({"image_size": 8}, "image_size .* Received: 8"),
        ({"image_size": [8.5, 8]}, r"image_size .* Received: \[8.5, 8\]"),
        ({"image_size": [5000, 8]}, r"image_size must be height and width, 1 to 4096 pixels each"),
        ({"channels": 4}, "channels of image_folder must be 3 for colour or 1 for grey. Received: 4"),
        ({"test_fraction": 1}, "test_fraction of image_folder must be 0 up to but not including 1. Received: 1"),
        ({"test_fraction": "half"}, "test_fraction .* Received: 'half'"),
        ({"skip_corrupt": "no"}, "skip_corrupt of image_folder must be true or false. Received: 'no'"),
        ({"data_dir": None}, "image_folder needs data.data_dir"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        plugins.build("data", "image_folder", **{"data_dir": str(folder), **options})


def test_a_run_without_a_test_set_has_no_accuracy_and_knows_its_folder(tmp_path: Path) -> None:
    folder, run = fill(tmp_path / "marks", {"a": 12, "b": 12}, NOISE[:, :, :, :1]), RunDir(tmp_path / "run")
    config = Config().override(
        [
            "data.name=image_folder", f"data.data_dir={folder}", 'data.options={"channels": 1, "test_fraction": 0}', "data.batch_size=8",
            "teacher.name=wrn_10_1", "student.name=wrn_10_1", "train.epochs=1", "distil.methods={}",
        ]
    )  # fmt: skip
    run_stages(config, run, [TeacherStage, PlainStage, EvaluateStage], quiet=True)
    for result in (read_result(run.teacher), read_result(run.student("plain")), *read_result(run.evaluation)["rows"]):
        assert result["parameters"] > 0
        assert not [key for key in result if key.startswith("test_")]
    moved = folder.rename(tmp_path / "moved")
    run_stages(config.override([f"data.data_dir={moved}"]), run, [TeacherStage], quiet=True)
    changed = moved.rename(tmp_path / "changed")
    Image.fromarray(NOISE[99][..., 0]).save(changed / "a" / "000.png")
    with pytest.raises(UserError, match="another configuration, which differs in: the artifacts that it was made from"):
        run_stages(config.override([f"data.data_dir={changed}"]), run, [TeacherStage], quiet=True)


def test_a_folder_that_cannot_be_listed_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(f"permission denied: {self.name}")

    monkeypatch.setattr(Path, "iterdir", refuse)  # root may read everything
    with pytest.raises(UserError, match="image_folder cannot be built with these options. PermissionError: permission denied: pets"):
        build(folder)
