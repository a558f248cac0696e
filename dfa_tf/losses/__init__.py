"""Distillation methods. A module is a method: `build(student, teacher, *, ...)` returns a `dfa_tf.methods.Method`."""
