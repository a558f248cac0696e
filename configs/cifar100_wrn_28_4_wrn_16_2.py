"""CIFAR-100, configuration (3) of the paper: teacher wrn_28_4, student wrn_16_2.

The main table of the paper (Guan et al. 2020, section 4.1), with its full protocol. The paper reports 79.17 % for the teacher,
73.42 % for the plain student and 75.85 % for DFA. Compare with `test_accuracy_best`, since these are probably best epochs.

    python bin/run.py --config=configs/cifar100_wrn_28_4_wrn_16_2.py --set data.data_dir=DIR

Cost: 200 epochs of the teacher and of each student, 30 epochs of the search: hours on a GPU, days on a CPU. One trained
teacher serves all three configurations: --set teacher.path=runs/.../teacher/model.keras
"""

from dfa_tf.config import Config
from dfa_tf.configs import families


def get_config() -> Config:
    """Teacher wrn_28_4, student wrn_16_2, 200 epochs."""
    return families.cifar100(student="wrn_16_2")
