"""The running process: its status line, signals, several workers, and the start of TensorFlow."""
