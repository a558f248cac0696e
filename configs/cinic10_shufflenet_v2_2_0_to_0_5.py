"""CINIC-10: teacher ShuffleNetV2 of width 2.0, student of width 0.5.

Purpose: the paper's second data set, with its full protocol. Published beside DFA: plain 73.82 %, Margin 78.79 %.

    python bin/run.py --config=configs/cinic10_shufflenet_v2_2_0_to_0_5.py --set data.data_dir=DIR

With weights searched on CIFAR-100 with the same networks (DFA-T): --set distil.aggregation=FILE, the alphas.json of
that search, which is this experiment with --set data.name=cifar100.

Cost: 140 epochs over 90,000 images for the teacher and each student, 40 epochs of the search: hours on a GPU.
"""

from dfa_tf.config import Config, DataConfig, SearchConfig, StudentConfig, TeacherConfig, TrainConfig


def get_config() -> Config:
    """Teacher of width 2.0, student of width 0.5, 140 epochs."""
    return Config(
        data=DataConfig(name="cinic10", batch_size=96, resized_crop=0.08, flip=True),
        teacher=TeacherConfig(name="shufflenet_v2_dfa_2_0"),
        student=StudentConfig(name="shufflenet_v2_dfa_0_5"),
        train=TrainConfig(epochs=140, learning_rate=0.01, schedule="step", milestones=(100 / 140, 120 / 140), decay=0.1),
        search=SearchConfig(mode="group_wise", objective="bridge", epochs=10, warmup_epochs=1, learning_rate=0.01),
    )
