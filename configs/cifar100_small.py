"""CIFAR-100 in less than half an hour on two cores: a trained teacher, few images, a small student.

The whole pipeline at the smallest scale at which distillation helps: fifty training images per class, the student
wrn_10_1, and your own teacher as a .keras file.

    python bin/run.py --config=configs/cifar100_small.py --set data.data_dir=DIR --set teacher.path=FILE

Cost: minutes on two cores, most of it the teacher's forward passes.
"""

from dfa_tf.config import Config, DataConfig, DistilConfig, SearchConfig, StudentConfig, TrainConfig


def get_config() -> Config:
    """Student wrn_10_1, 5,000 training images, joint search."""
    return Config(
        data=DataConfig(name="cifar100", batch_size=50, train_limit_per_class=50, crop_padding=4, flip=True),
        student=StudentConfig(name="wrn_10_1"),
        train=TrainConfig(epochs=12, learning_rate=0.1, evaluate_every=4),
        search=SearchConfig(mode="joint", objective="bridge", epochs=4, warmup_epochs=1, beta_learning_rate=2e-2),
        distil=DistilConfig(methods={"dfa": None}, options={"dfa": {"distance": "l2_normalised"}}),
    )
