"""The protocols that several experiments share, each as a function of the networks."""

from dfa_tf.config import Config, DataConfig, SearchConfig, StudentConfig, TeacherConfig, TrainConfig


def cifar100(*, student: str) -> Config:
    """CIFAR-100 as in Guan et al. 2020, section 4.1: teacher wrn_28_4, 200 epochs, learning rate times 0.2 at epochs 60, 120 and 160."""
    return Config(
        data=DataConfig(name="cifar100", batch_size=128, crop_padding=4, flip=True),
        teacher=TeacherConfig(name="wrn_28_4"),
        student=StudentConfig(name=student),
        train=TrainConfig(epochs=200, learning_rate=0.1, schedule="step", milestones=(0.3, 0.6, 0.8), decay=0.2, weight_decay=5e-4),
        search=SearchConfig(mode="group_wise", objective="bridge", epochs=10, warmup_epochs=1),
    )


def cinic10(*, teacher: str, student: str) -> Config:
    """CINIC-10 as in Guan et al. 2020: 140 epochs, learning rate times 0.1 at epochs 100 and 120."""
    return Config(
        data=DataConfig(name="cinic10", batch_size=96, resized_crop=0.08, flip=True),
        teacher=TeacherConfig(name=teacher),
        student=StudentConfig(name=student),
        train=TrainConfig(epochs=140, learning_rate=0.01, schedule="step", milestones=(100 / 140, 120 / 140), decay=0.1),
        search=SearchConfig(mode="group_wise", objective="bridge", epochs=10, warmup_epochs=1, learning_rate=0.01),
    )


def kd(*, teacher: str, student: str) -> Config:
    """CIFAR-100 as in Tian, Krishnan, Isola 2020, table 1: 240 epochs, learning rate times 0.1 at epochs 150, 180 and 210."""
    return Config(
        data=DataConfig(name="cifar100", options={"statistics": "cifar100"}, batch_size=64, crop_padding=4, flip=True),
        teacher=TeacherConfig(name=teacher),
        student=StudentConfig(name=student),
        train=TrainConfig(
            epochs=240, learning_rate=0.05, schedule="step", milestones=(150 / 240, 180 / 240, 210 / 240), decay=0.1, nesterov=False
        ),
        search=SearchConfig(mode="group_wise", objective="bridge", epochs=10, warmup_epochs=1),
    )
