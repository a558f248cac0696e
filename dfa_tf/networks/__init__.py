"""Keras classifiers: their graphs, layer groups and features."""
