"""The binaries: thin mains over `dfa_tf.pipeline`. Only here are flags defined."""
