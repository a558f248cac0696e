"""CIFAR-100: teacher resnet32x4, student resnet8x4, one of the six standard pairs of the distillation literature.

Purpose: DFA beside the published tables of other methods, with the protocol that they share (Tian, Krishnan, Isola 2020,
Contrastive Representation Distillation, table 1). Their crops pad with zeros; these reflect.

    python bin/run.py --config=configs/kd_resnet32x4_resnet8x4.py --set data.data_dir=DIR

Their row of KD: --set 'distil.methods={"kd": 0.9}' --set distil.ce_weight=0.1

Cost: 240 epochs of the teacher and of each student, 30 epochs of the search: hours on a GPU.
"""

from dfa_tf.config import Config, DataConfig, SearchConfig, StudentConfig, TeacherConfig, TrainConfig


def get_config() -> Config:
    """Teacher resnet32x4, student resnet8x4, 240 epochs."""
    return Config(
        data=DataConfig(name="cifar100", options={"statistics": "cifar100"}, batch_size=64, crop_padding=4, flip=True),
        teacher=TeacherConfig(name="resnet32x4"),
        student=StudentConfig(name="resnet8x4"),
        train=TrainConfig(
            epochs=240, learning_rate=0.05, schedule="step", milestones=(150 / 240, 180 / 240, 210 / 240), decay=0.1, nesterov=False
        ),
        search=SearchConfig(mode="group_wise", objective="bridge", epochs=10, warmup_epochs=1),
    )
