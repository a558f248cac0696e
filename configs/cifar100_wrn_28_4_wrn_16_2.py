"""CIFAR-100, configuration (3) of the paper: teacher wrn_28_4, student wrn_16_2.

Purpose: the paper's main table (Guan et al. 2020, section 4.1), with its full protocol. The paper reports 73.42 % for the plain
student and 75.85 % for DFA; the teacher has 79.17 %. Compare with `test_accuracy_best`, since these are probably best epochs.

    python bin/run.py --config=configs/cifar100_wrn_28_4_wrn_16_2.py --set data.data_dir=DIR

Cost: 200 epochs of the teacher and of each student, 30 epochs of the search: hours on a GPU, days on a CPU. A teacher that
is trained already serves all three configurations: --set teacher.path=runs/.../teacher/model.keras
"""

from dfa_tf.config import Config, DataConfig, SearchConfig, StudentConfig, TeacherConfig, TrainConfig


def get_config() -> Config:
    """Teacher wrn_28_4, student wrn_16_2, 200 epochs."""
    return Config(
        data=DataConfig(name="cifar100", batch_size=128, crop_padding=4, flip=True),
        teacher=TeacherConfig(name="wrn_28_4"),
        student=StudentConfig(name="wrn_16_2"),
        train=TrainConfig(epochs=200, learning_rate=0.1, schedule="step", milestones=(0.3, 0.6, 0.8), decay=0.2, weight_decay=5e-4),
        search=SearchConfig(mode="group_wise", objective="bridge", epochs=10, warmup_epochs=1),
    )
