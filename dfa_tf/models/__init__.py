"""Networks. Each module is a family whose `build(*, image_shape, num_classes, ...)` returns a `keras.Model`."""
