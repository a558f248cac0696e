"""CINIC-10: teacher ShuffleNetV2 of width 1.0, student of width 0.5.

The second data set of the paper (Guan et al. 2020), with its full protocol. Published beside DFA: plain 73.82 %, Margin 79.69 %.

    python bin/run.py --config=configs/cinic10_shufflenet_v2_1_0_to_0_5.py --set data.data_dir=DIR

With weights searched on CIFAR-100 with the same networks (DFA-T): --set distil.aggregation=FILE, the alphas.json of
that search, which is this experiment with --set data.name=cifar100.

Cost: 140 epochs over 90,000 images for the teacher and each student, 40 epochs of the search: hours on a GPU.
"""

from dfa_tf.config import Config
from dfa_tf.configs import families


def get_config() -> Config:
    """Teacher of width 1.0, student of width 0.5, 140 epochs."""
    return families.cinic10(teacher="shufflenet_v2_dfa_1_0", student="shufflenet_v2_dfa_0_5")
