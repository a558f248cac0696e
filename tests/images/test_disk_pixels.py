"""Images in a temporary file are those that were put there, and take no memory."""

import tracemalloc

import numpy as np

from dfa_tf.images.disk_pixels import DiskPixels

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 3, 2, 1)).astype(np.uint8)


def test_images_are_read_by_index_in_any_order_and_more_than_once() -> None:
    pixels = DiskPixels(50, (3, 2, 1))
    pixels.append(IMAGES[:30])
    pixels.append(IMAGES[30:])
    order = np.array([49, 0, 7, 7, 30])
    assert pixels.shape == (50, 3, 2, 1)
    np.testing.assert_array_equal(pixels[order], IMAGES[order])
    assert pixels[order].dtype == np.uint8
    assert pixels[order[:0]].shape == (0, 3, 2, 1)


def test_what_is_read_is_the_caller_s_own() -> None:
    pixels = DiskPixels(50, (3, 2, 1))
    pixels.append(IMAGES)
    pixels[np.arange(50)][:] = 0
    np.testing.assert_array_equal(pixels[np.arange(50)], IMAGES)


def test_memory_does_not_grow_with_the_images() -> None:
    part = np.zeros((100, 32, 32, 3), np.uint8)
    tracemalloc.start()
    pixels = DiskPixels(5000, part.shape[1:])
    for _ in range(50):
        pixels.append(part)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < part.nbytes
    assert pixels[np.array([4999])].shape == (1, 32, 32, 3)
