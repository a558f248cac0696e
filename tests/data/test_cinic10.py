"""CINIC-10 is prepared from the published archive only, and read from its data directory."""

import hashlib
import io
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from dfa_tf import plugins
from dfa_tf.data.cinic10.cinic10_dataset_builder import Archive, Builder
from dfa_tf.errors import UserError

PUBLISHED = Builder.ARCHIVE
NOWHERE = "http://127.0.0.1:9/never-asked-for.tar.gz"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
EMPTY_MD5 = "d41d8cd98f00b204e9800998ecf8427e"  # of no bytes at all, RFC 1321
PREPARED = Path("cinic10", "1.0.0")


def png(red: int, green: int, blue: int) -> bytes:
    """A picture of 32x32 in one colour."""
    return tf.io.encode_png(np.full((32, 32, 3), (red, green, blue), np.uint8)).numpy()


def regular(name: str, content: bytes = b"") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member, content


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


def write(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return path


def expect(path: Path, url: str = NOWHERE) -> Archive:
    """The expected size and digest of this file, in place of the published ones."""
    content = path.read_bytes()
    return Archive(url, len(content), hashlib.md5(content).hexdigest())


def small_members() -> list[tuple[tarfile.TarInfo, bytes]]:
    """Two pictures per class and split. Red encodes split and class, green the class, blue the origin: 0 CIFAR-10, 200 ImageNet."""
    members = [special("./", tarfile.DIRTYPE), regular("./README.md", b"notes"), regular("imagenet-contributors.csv", b"synset")]
    for i, split in enumerate(["test", "train", "valid"]):
        members.append(special(f"./{split}", tarfile.DIRTYPE))
        for label, name in enumerate(CLASSES):
            # The description of CINIC-10 and the files in circulation differ in the name: both are read.
            cifar = f"cifar10-train-{label}" if split == "train" else f"cifar-10-test-{label}"
            members.append(regular(f"./{split}/{name}/{cifar}.png", png(80 * i + label, 20 * label, 0)))
            members.append(regular(f"{split}/{name}/n0269037{label}_{label}.png", png(80 * i + label, 20 * label, 200)))
    return members


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of 60 pictures with the structure of the published one, under another file name."""
    return write(tmp_path_factory.mktemp("archive") / "small.tgz", small_members())


@pytest.fixture(autouse=True, scope="module")
def small(archive: Path) -> Iterator[None]:
    """All tests expect the small archive."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Builder, "ARCHIVE", expect(archive))
        yield


@pytest.fixture(scope="module")
def prepared(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that holds the data set."""
    data_dir = tmp_path_factory.mktemp("prepared")
    Builder(data_dir=data_dir, archive=archive).download_and_prepare()
    return data_dir


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes, int], str]]:
    """Sets the response of a local server, content and status; returns its address."""
    given = {"content": b"", "status": 200}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(given["status"])
            self.send_header("Content-Length", str(len(given["content"])))
            self.end_headers()
            self.wfile.write(given["content"])

        def log_message(self, *_: object) -> None:
            """Logs nothing."""

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()

        def give(content: bytes, status: int = 200) -> str:
            given.update(content=content, status=status)
            return f"http://127.0.0.1:{server.server_port}/CINIC-10.tar.gz"

        yield give
        server.shutdown()
        thread.join()


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def build_in(folder: Path, **options: object) -> object:
    return plugins.build("data", "cinic10", data_dir=str(folder), **options)


@pytest.fixture(scope="class")
def manual_directory(request: pytest.FixtureRequest, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A manual directory like a user's, for the tests of TFDS."""
    request.cls.EXAMPLE_DIR = tmp_path_factory.mktemp("manual")
    (request.cls.EXAMPLE_DIR / "CINIC-10.tar.gz").write_bytes(archive.read_bytes())


@pytest.mark.usefixtures("manual_directory")
class TestWhatTfdsAsksOfABuilder(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = Builder
    SPLITS = {"train": 20, "valid": 20, "test": 20}  # noqa: RUF012 (TFDS reads it from the class)


# The published data set


def test_the_archive_is_the_published_one() -> None:
    assert (PUBLISHED.size, PUBLISHED.md5) == (687_544_992, "6ee4d0c996905fe93221de577967a372")
    assert PUBLISHED.url.endswith("ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz")


def test_the_data_set_names_its_source_and_licence(tmp_path: Path) -> None:
    info = Builder(data_dir=tmp_path).info
    assert info.full_name == "cinic10/1.0.0"
    assert "10283/3192" in info.homepage
    assert "1810.03505" in info.citation
    assert info.redistribution_info.license == "CC BY 4.0"
    assert info.supervised_keys == ("image", "label")


def test_reading_the_description_prepares_nothing(tmp_path: Path) -> None:
    assert Builder(data_dir=tmp_path).info.features["label"].names == CLASSES
    assert files(tmp_path) == []


# What is read


@pytest.mark.parametrize(("split", "first"), [("test", 0), ("train", 80), ("valid", 160)])
def test_every_picture_comes_with_its_split_class_and_origin(prepared: Path, split: str, first: int) -> None:
    examples = list(Builder(data_dir=prepared).as_dataset(split=split).as_numpy_iterator())
    assert len(examples) == 20
    for example in examples:
        label = example["label"]
        blue = 0 if example["origin"] == b"cifar-10" else 200
        np.testing.assert_array_equal(example["image"], np.full((32, 32, 3), (first + label, 20 * label, blue)))
    cifar = [(label, b"cifar-10") for label in range(10)]
    imagenet = [(label, f"n0269037{label}".encode()) for label in range(10)]
    assert sorted((int(example["label"]), example["origin"]) for example in examples) == sorted(cifar + imagenet)


def test_the_plug_in_gives_raw_pixels_and_the_authors_statistics(archive: Path, tmp_path: Path) -> None:
    source = build_in(tmp_path, archive=str(archive))
    assert source.class_names == CLASSES
    for images, first in ((source.train, 80), (source.test, 0)):
        assert images.pixels.shape == (20, 32, 32, 3)
        pixels = images.pixels[np.arange(20)]
        assert pixels.dtype == np.uint8
        assert Counter(images.labels.tolist()) == dict.fromkeys(range(10), 2)
        np.testing.assert_array_equal(pixels[:, 0, 0, 0], first + images.labels)
        np.testing.assert_array_equal(pixels[:, 31, 31, 1], 20 * images.labels)
    # 0.47889522 * 255 = 122.1182811, and so on.
    np.testing.assert_allclose(source.mean, [122.1182811, 120.4309971, 109.7708802])
    np.testing.assert_allclose(source.std, [61.7247288, 60.7615173, 65.9808293], rtol=1e-6)
    assert "CINIC-10" in source.description


def test_training_takes_the_valid_split_too_where_asked(prepared: Path) -> None:
    source = build_in(prepared, train_split="train+valid")
    # Red is 80 + class in train, 160 + class in valid.
    assert Counter((source.train.pixels[np.arange(40)][:, 0, 0, 0] - source.train.labels).tolist()) == {80: 20, 160: 20}
    assert len(source.test.labels) == 20


def test_another_training_split_is_refused(prepared: Path) -> None:
    with pytest.raises(UserError, match=r"unknown train_split of cinic10. Received: 'train\+val'. Did you mean 'train\+valid'"):
        build_in(prepared, train_split="train+val")


def test_prepared_data_are_only_read(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No download, no access to the archive, nothing written."""
    monkeypatch.setattr(Builder, "ARCHIVE", PUBLISHED._replace(url=NOWHERE))

    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in [prepared, *prepared.rglob("*")]}

    before = state()
    assert len(build_in(prepared, archive=str(tmp_path / "absent.tar.gz")).train.labels) == 20
    assert state() == before


# Where the archive comes from


def test_an_archive_in_the_manual_directory_needs_no_download(archive: Path, tmp_path: Path) -> None:
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "CINIC-10.tar.gz").write_bytes(archive.read_bytes())
    assert len(build_in(tmp_path).train.labels) == 20


def test_the_archive_is_downloaded_where_none_is_given(
    archive: Path, tmp_path: Path, answer: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Builder, "ARCHIVE", expect(archive, answer(archive.read_bytes())))
    (tmp_path / "downloads" / "manual").mkdir(parents=True)
    (tmp_path / "downloads" / "manual" / "of_another_data_set.zip").touch()
    assert len(build_in(tmp_path).train.labels) == 20


def test_an_empty_download_is_refused_and_repeated_next_time(
    archive: Path, tmp_path: Path, answer: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = expect(archive, answer(b""))
    monkeypatch.setattr(Builder, "ARCHIVE", right)
    with pytest.raises(UserError) as refused:
        build_in(tmp_path)
    message = str(refused.value)
    assert f"must have {right.size} bytes and the MD5 digest {right.md5}" in message
    assert f"Received: 0 bytes with the MD5 digest {EMPTY_MD5}" in message
    assert "https://datashare.ed.ac.uk/handle/10283/3192" in message
    assert "data.options.archive" in message
    assert files(tmp_path) == []
    answer(archive.read_bytes())
    assert len(build_in(tmp_path).train.labels) == 20


def test_a_failed_download_is_reported(archive: Path, tmp_path: Path, answer: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Builder, "ARCHIVE", expect(archive, answer(b"gone", 404)))
    with pytest.raises(UserError, match=r"CINIC-10.tar.gz cannot be downloaded from http.*data.options.archive.*HTTP code: 404"):
        build_in(tmp_path)
    assert not (tmp_path / PREPARED).exists()


# What is refused


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content[:-1] + b"\xff"], ids=["short", "damaged"])
def test_a_local_archive_is_verified_and_kept(archive: Path, tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    wrong, data_dir = tmp_path / "wrong.tar.gz", tmp_path / "data"
    wrong.write_bytes(change(archive.read_bytes()))
    received = expect(wrong)
    with pytest.raises(UserError, match=f"Received: {received.size} bytes with the MD5 digest {received.md5}, in .*wrong.tar.gz"):
        build_in(data_dir, archive=str(wrong))
    assert wrong.exists()
    assert files(data_dir) == []


@pytest.mark.parametrize("path", ["absent.tar.gz", "."])
def test_an_archive_that_is_no_file_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the archive of CINIC-10 must be a file"):
        build_in(tmp_path / "data", archive=str(tmp_path / path))


@pytest.mark.parametrize(
    ("member", "rule"),
    [
        (regular("/train/frog/cifar10-train-1.png"), "files and folders below its root"),
        (regular("train/frog/../../../cifar10-train-1.png"), "files and folders below its root"),
        (special("..", tarfile.DIRTYPE), "files and folders below its root"),
        (special("train/frog/cifar10-train-1.png", tarfile.SYMTYPE, "/etc/passwd"), "no links"),
        (special("train/frog/cifar10-train-1.png", tarfile.LNKTYPE, "README.md"), "no links"),
        (special("README.md", tarfile.FIFOTYPE), "no links"),
        (regular("train/unicorn/cifar10-train-1.png"), "must be called"),
        (regular("validation/frog/cifar10-train-1.png"), "must be called"),
        (regular("train/frog/deeper/cifar10-train-1.png"), "must be called"),
        (regular("train/frog/cifar100-train-1.png"), "must be called"),
        (regular("train/frog/cifar10-train-1.png.exe"), "must be called"),
        (regular("train/README.md"), "must be called"),
    ],
    ids=lambda value: None if isinstance(value, str) else f"{value[0].name}:{value[0].type.decode()}",
)
def test_an_unexpected_member_is_refused_before_anything_is_written(
    member: tuple[tarfile.TarInfo, bytes], rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, data_dir = write(tmp_path / "bad.tar.gz", [*small_members(), member]), tmp_path / "data"
    monkeypatch.setattr(Builder, "ARCHIVE", expect(bad))
    monkeypatch.setattr(Builder, "_generate_examples", lambda *_: pytest.fail("came to writing"))
    with pytest.raises(UserError, match=f"{rule}.*Received: '{member[0].name}'"):
        build_in(data_dir, archive=str(bad))
    assert files(data_dir) == []


def test_nothing_is_left_of_a_preparation_that_fails_halfway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = write(tmp_path / "broken.tar.gz", [*small_members(), *small_members()])  # TFDS finds each picture twice, after writing
    monkeypatch.setattr(Builder, "ARCHIVE", expect(broken))
    with pytest.raises(AssertionError, match="Two examples share the same hashed key"):
        Builder(data_dir=tmp_path / "data", archive=broken).download_and_prepare()
    assert files(tmp_path / "data") == []


def test_a_read_only_data_directory_is_refused(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cinic10/1.0.0 is not prepared in .*preparing it failed: set data.data_dir"):
        build_in(tmp_path / "file", archive=str(archive))
