"""Networks. A module is a family: `build(*, image_shape, num_classes, ...)` returns a `keras.Model`."""
