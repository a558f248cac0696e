"""Data sets. Each module is a plug-in whose `build(...)` returns a `dfa_tf.splits.Source`."""
