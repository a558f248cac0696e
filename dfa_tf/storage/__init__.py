"""What is written, and where: the run directory and whole files."""
