"""Images in a temporary file, read by index: however many they are, they take no memory."""

import os
import tempfile
import weakref
from collections.abc import Sequence

import numpy as np


class DiskPixels:
    """Decoded images of one size, in a file without a name that goes with the process. It is written once, in order, and then read.

    Read by `os.preadv` and not as a memory map, whose pages would count as the process's memory.

    Args:
        count: how many images there will be.
        shape: of an image: height, width, channels.

    Attributes:
        shape: `[n, height, width, channels]`.
    """

    def __init__(self, count: int, shape: Sequence[int]) -> None:
        self.shape = (count, *shape)
        self._bytes = int(np.prod(shape))
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it is open as long as the images are of use)
        weakref.finalize(self, self._file.close)

    def append(self, images: np.ndarray) -> None:
        """Adds the next images, uint8 `[m, height, width, channels]`."""
        self._file.write(np.ascontiguousarray(images, np.uint8).data)
        self._file.flush()

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """The images of these indices, integers `[m]` of 0 to n - 1: raw pixels, uint8 `[m, height, width, channels]`."""
        images = np.empty((len(indices), *self.shape[1:]), np.uint8)
        for row, index in zip(images.reshape(len(images), self._bytes), indices, strict=True):
            os.preadv(self._file.fileno(), [row.data], int(index) * self._bytes)
        return images
