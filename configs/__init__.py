"""Experiments: each module defines `get_config()` and imports nothing but `dfa_tf.config`."""
