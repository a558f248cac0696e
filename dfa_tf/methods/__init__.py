"""What a distillation method is, and the distances that methods are made of."""

from dfa_tf.methods.base import Batch, Method, Phase

__all__ = ["Batch", "Method", "Phase"]
