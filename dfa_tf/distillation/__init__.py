"""Stage 2: the Distiller and its training."""
