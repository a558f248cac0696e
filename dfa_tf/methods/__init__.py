"""The contract of distillation methods, and the distances that they use."""

from dfa_tf.methods.base import Batch, Method, Phase

__all__ = ["Batch", "Method", "Phase"]
