"""A kill within this process: an exception that nothing catches."""

import keras


class KilledError(Exception):
    """Takes the place of SIGKILL: what comes after it has not happened."""


class KillAfter(keras.callbacks.Callback):
    """Kills a training after so many steps of this process."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._left = step

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self._left -= 1
        if not self._left:
            raise KilledError
