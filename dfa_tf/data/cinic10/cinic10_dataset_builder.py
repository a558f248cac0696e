"""CINIC-10 as a data set of TensorFlow Datasets, prepared from the archive of its authors.

References:
    L. N. Darlow, E. J. Crowley, A. Antoniou, A. J. Storkey (2018), CINIC-10 Is Not ImageNet or CIFAR-10, arXiv 1810.03505.
"""

import hashlib
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple

import tensorflow_datasets as tfds

from dfa_tf.errors import UserError

SPLITS = ("train", "valid", "test")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HOMEPAGE = "https://datashare.ed.ac.uk/handle/10283/3192"

_FILE_NAME = "CINIC-10.tar.gz"
_WAY_OUT = f"Get it from {HOMEPAGE} and set data.options.archive to its path, or put it into downloads/manual of data.data_dir."
_NOTES = ("README.md", "imagenet-contributors.csv", "synsets-to-cifar-10-classes.txt")
# The description of the data set says `cifar-10-train-1.png`; the files in circulation are called `cifar10-train-1.png`.
_PICTURE = re.compile(
    rf"(?P<split>{'|'.join(SPLITS)})/(?P<label>{'|'.join(CLASSES)})/(?:cifar-?10-(?:train|test)-\d+|(?P<synset>n\d+)_\d+)\.png", re.ASCII
)

_DESCRIPTION = """\
CINIC-10 has the ten classes of CIFAR-10 and 4.5 times its images: 270,000 of 32x32 colour pixels, 90,000 in each of three
splits and 9,000 in each class of a split. In each split 20,000 come from CIFAR-10 and 70,000 from ImageNet, made smaller.
"""
_CITATION = """\
@techreport{darlow2018cinic10,
  title = {{CINIC}-10 Is Not {I}mage{N}et or {CIFAR}-10},
  author = {Luke N. Darlow and Elliot J. Crowley and Antreas Antoniou and Amos J. Storkey},
  institution = {University of Edinburgh},
  number = {EDI-INF-ANC-1802},
  year = {2018},
  eprint = {1810.03505},
  archivePrefix = {arXiv},
}
"""


class Archive(NamedTuple):
    """The address of the archive, and its expected content.

    Attributes:
        url: address of the download.
        size: size in bytes.
        md5: MD5 digest in hexadecimal.
    """

    url: str
    size: int
    md5: str


class Builder(tfds.core.GeneratorBasedBuilder):
    """Prepares the splits `train`, `valid` and `test` of CINIC-10, 90,000 images each.

    An example is `{"image": uint8 [32, 32, 3], "label": int64, "origin": string}`. The origin is `cifar-10`, or a synset of
    ImageNet such as `n02690373`. The archive is `archive`, or else `CINIC-10.tar.gz` in TFDS's manual directory, or else it is
    downloaded. Pictures are copied from the archive into TFDS's records without unpacking it.

    Args:
        archive: path of a local archive.
        **kwargs: arguments of `tfds.core.GeneratorBasedBuilder`, for example `data_dir`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The archive of 2018."}  # noqa: RUF012 (TFDS reads it from the class)
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Only if the download fails: get {_FILE_NAME} from {HOMEPAGE} and put it here unchanged."

    # Verified here, not by TFDS's checksums.tsv, which needs a SHA-256: only the size and the MD5 digest are published.
    ARCHIVE = Archive(
        url="https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz",
        size=687_544_992,
        md5="6ee4d0c996905fe93221de577967a372",
    )

    def __init__(self, *, archive: str | os.PathLike[str] | None = None, **kwargs: Any) -> None:
        self._archive = archive
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=CLASSES),
                "origin": tfds.features.Text(),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=features,
            supervised_keys=("image", "label"),
            homepage=HOMEPAGE,
            citation=_CITATION,
            license="CC BY 4.0",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        archive = self._given(dl_manager) or self._download(dl_manager)
        for _ in _pictures(archive):  # finds unexpected members before anything is written
            pass
        return {split: self._generate_examples(archive, split) for split in SPLITS}

    def _generate_examples(self, archive: tfds.core.Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for picture, file in _pictures(archive):
            if picture["split"] == split:
                yield picture[0], {"image": file.read(), "label": picture["label"], "origin": picture["synset"] or "cifar-10"}

    def _given(self, dl_manager: tfds.download.DownloadManager) -> tfds.core.Path | None:
        if self._archive is not None:
            archive = tfds.core.Path(self._archive).expanduser()
        else:
            try:
                archive = dl_manager.manual_dir / _FILE_NAME
            except AssertionError:  # raised by TFDS if the directory is empty or missing
                return None
            if not archive.exists():
                return None
        self._verify(archive)
        return archive

    def _download(self, dl_manager: tfds.download.DownloadManager) -> tfds.core.Path:
        try:
            archive = dl_manager.download(self.ARCHIVE.url)
        except (OSError, tfds.download.DownloadError) as error:
            raise UserError(f"{_FILE_NAME} cannot be downloaded from {self.ARCHIVE.url}. {_WAY_OUT} Received: {error}") from None
        try:
            self._verify(archive)
        except UserError:
            # With its .INFO file: TFDS would regard the archive as downloaded, and refuse another file in its place.
            for path in (archive, archive.parent / f"{archive.name}.INFO"):
                path.unlink(missing_ok=True)
            raise
        return archive

    def _verify(self, archive: tfds.core.Path) -> None:
        if not archive.is_file():
            raise UserError(f"the archive of CINIC-10 must be a file. {_WAY_OUT} Received: {archive}")
        with archive.open("rb") as file:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            size = file.tell()
        if (size, md5) != (self.ARCHIVE.size, self.ARCHIVE.md5):
            raise UserError(
                f"{_FILE_NAME} must have {self.ARCHIVE.size} bytes and the MD5 digest {self.ARCHIVE.md5}. {_WAY_OUT} "
                f"Received: {size} bytes with the MD5 digest {md5}, in {archive}"
            )


def _pictures(archive: tfds.core.Path) -> Iterator[tuple[re.Match[str], IO[bytes]]]:
    """The pictures of the archive in order: the parsed path, and the open file, which must be read before the next picture."""
    with archive.open("rb") as stream, tarfile.open(fileobj=stream, mode="r|gz") as tar:
        for member in tar:
            picture = _picture(member)
            if picture is not None and (file := tar.extractfile(member)) is not None:
                yield picture, file


def _picture(member: tarfile.TarInfo) -> re.Match[str] | None:
    """The parsed path of a picture; None for folders and for the notes of the authors.

    Raises:
        UserError: if the member is a link or a device, points outside the archive, or is unexpected.
    """
    path = PurePosixPath(member.name)
    if not (member.isfile() or member.isdir()) or path.is_absolute() or ".." in path.parts:
        raise UserError(f"{_FILE_NAME} must contain only files and folders below its root, and no links. Received: {member.name!r}")
    if member.isdir() or str(path) in _NOTES:
        return None
    picture = _PICTURE.fullmatch(str(path))
    if picture is None:
        raise UserError(
            f"the pictures of {_FILE_NAME} must be called SPLIT/CLASS/cifar10-ORIGIN-INDEX.png or SPLIT/CLASS/SYNSET_NUMBER.png, "
            f"with a SPLIT of {', '.join(SPLITS)}. Received: {member.name!r}"
        )
    return picture
