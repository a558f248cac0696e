"""Stage 1: the aggregation weights and their search."""
