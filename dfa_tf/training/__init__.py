"""What both stages train with: strategies, updates, checkpoints, evaluation."""
