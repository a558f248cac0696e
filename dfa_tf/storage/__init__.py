"""The run directory, and atomic reading and writing of files."""
