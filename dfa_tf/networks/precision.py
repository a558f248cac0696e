"""The precision of networks: the requested one, the fastest one of this device, and a network that computes in it."""

import contextlib
import functools
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from dfa_tf.config import Config
from dfa_tf.networks.copying import copy_of
from dfa_tf.networks.features import FeatureModel

_BFLOAT16_PROCESSORS = ("amx_bf16", "avx512_bf16")
_EXACT = (keras.layers.Normalization, keras.layers.Rescaling)
"""Layers that read raw pixels, 0 to 255: bfloat16 would round them to every second value."""


@functools.cache
def fast_precision() -> tuple[str, str]:
    """The fastest precision that this machine's devices compute convolutions in, and why, in words."""
    details = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    gpus = [detail.get("compute_capability", (0, 0)) for detail in details]
    return choose_precision(gpus, _processor_flags(), onednn=os.environ.get("TF_ENABLE_ONEDNN_OPTS") != "0")


def choose_precision(gpus: Sequence[tuple[int, int]], flags: Collection[str], *, onednn: bool = True) -> tuple[str, str]:
    """The fastest precision of a machine, and why, in words.

    GPUs have tensor cores for bfloat16 from compute capability 8.0, for float16 from 7.0. Processors either have instructions for
    bfloat16 or emulate it with float32, which is slower than float32 itself.

    Args:
        gpus: compute capability of each, major and minor.
        flags: instruction sets of the processor, as Linux names them.
        onednn: whether TensorFlow uses oneDNN; only its convolutions use these instructions.
    """
    if gpus:
        weakest = min(gpus)
        name = "mixed_bfloat16" if weakest >= (8, 0) else "mixed_float16" if weakest >= (7, 0) else "float32"
        return name, f"the GPU has compute capability {weakest[0]}.{weakest[1]}"
    fast = [name for name in _BFLOAT16_PROCESSORS if name in flags]
    if fast and onednn:
        return "mixed_bfloat16", f"the processor has {fast[0].upper()}"
    return "float32", "the processor has no fast bfloat16"


def _processor_flags() -> set[str]:
    """The instruction sets of the processor, from Linux; empty on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return set()
    lines = (line.partition(":") for line in text.splitlines())
    return {flag for name, _, flags in lines if name.strip() == "flags" for flag in flags.split()}


def policy_name(precision: str) -> str:
    """The name of the dtype policy; for `"auto"` the fastest on this machine."""
    return fast_precision()[0] if precision == "auto" else precision


def resolved(config: Config, say: Callable[[str], None]) -> Config:
    """A configuration without `auto`, so that a result names the precision that made it.

    Args:
        config: of a run.
        say: called with a sentence: what `auto` stands for here, and why.

    Raises:
        UserError: if the fastest precision does not fit the rest of the configuration.
    """
    asked = {"train.precision": config.train.precision, "teacher.precision": config.teacher.precision}
    auto = [field for field, name in asked.items() if name == "auto"]
    if not auto:
        return config
    name, why = fast_precision()
    say(f"{' and '.join(auto)}=auto: {name}, because {why}")
    return config.replace(dict.fromkeys(auto, name))


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Layers built inside the context compute in this precision: `auto`, `float32`, `mixed_bfloat16` or `mixed_float16`."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy_name(name))
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def computing_in(name: str, network: FeatureModel) -> FeatureModel:
    """The network itself if it computes in this precision; else a copy, with its own weights, that does.

    Weights are float32 either way. In a mixed precision the logits are still float32, and so are the layers that normalise raw pixels.
    """
    name = policy_name(name)
    policies = {layer.dtype_policy.name for layer in network.model.layers if not isinstance(layer, keras.layers.InputLayer)}
    if (policies == {name}) if name == "float32" else (name in policies):
        return network
    last = network.model.outputs[0]._keras_history.operation

    def policy(layer: keras.layers.Layer) -> str:
        return "float32" if layer is last or isinstance(layer, _EXACT) else name

    return network.with_model(copy_of(network.model, policy=policy))
