"""Real CIFAR-100 at the scale at which many seeds can be afforded on two cores: what RESULTS.md is made with.

Purpose: every method and every aggregation under one budget that two cores reach: fifty training images a class, eight
epochs, the student wrn_10_1, and a trained teacher of your own as a .keras file.

    python bin/compare.py --config=configs/cifar100_evidence.py --methods=plain,kd,margin,dfa --seeds=0,1,2 \\
        --set data.data_dir=DIR --set teacher.path=FILE

Cost: four to eight minutes a student on two cores, most of it the teacher's forward passes.
"""

from dfa_tf.config import Config, DataConfig, DistilConfig, SearchConfig, StudentConfig, TrainConfig


def get_config() -> Config:
    """Student wrn_10_1, 5,000 training images, eight epochs, joint search."""
    return Config(
        data=DataConfig(name="cifar100", batch_size=50, train_limit_per_class=50, crop_padding=4, flip=True),
        student=StudentConfig(name="wrn_10_1"),
        train=TrainConfig(epochs=8, learning_rate=0.1, evaluate_every=8),
        search=SearchConfig(mode="joint", objective="bridge", epochs=6, warmup_epochs=1, beta_learning_rate=2e-2),
        distil=DistilConfig(methods={"dfa": None}, options={"dfa": {"distance": "l2_normalised"}}),
    )
