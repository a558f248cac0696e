"""Data sets. A module is a plug-in: `build(...)` returns a `dfa_tf.splits.Source`."""
