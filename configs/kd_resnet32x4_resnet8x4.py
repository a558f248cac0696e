"""CIFAR-100: teacher resnet32x4, student resnet8x4, one of the six standard pairs of the distillation literature.

Compares DFA with the published tables of other methods, under the protocol that they share (Tian, Krishnan, Isola 2020,
Contrastive Representation Distillation, table 1). Their crops pad with zeros; these reflect.

    python bin/run.py --config=configs/kd_resnet32x4_resnet8x4.py --set data.data_dir=DIR

Their row of KD: --set 'distil.methods={"kd": 0.9}' --set distil.ce_weight=0.1

Cost: 240 epochs of the teacher and of each student, 30 epochs of the search: hours on a GPU.
"""

from dfa_tf.config import Config
from dfa_tf.configs import families


def get_config() -> Config:
    """Teacher resnet32x4, student resnet8x4, 240 epochs."""
    return families.kd(teacher="resnet32x4", student="resnet8x4")
