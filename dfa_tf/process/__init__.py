"""What a process is and does: its display line, signals, several workers, and TensorFlow's start."""
