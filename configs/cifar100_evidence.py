"""Real CIFAR-100 at the scale at which many seeds can be afforded on two cores: what RESULTS.md is made with.

Purpose: every method and every aggregation under one budget that two cores reach: fifty training images a class, ten
epochs, the student wrn_10_1, and a trained teacher of your own as a .keras file, whose outputs for two variations of
each image are kept on disk (9 GB). The weights of the methods are those that won on a validation split; compare takes
for each row those that the row names, and so run and distil want distil.methods from you.

    python bin/compare.py --config=configs/cifar100_evidence.py --methods=plain,kd,margin,dfa --seeds=0,1,2 \\
        --set data.data_dir=DIR --set teacher.path=FILE

Cost: two to four minutes a student on one core of two, and as much for its search.
"""

from dfa_tf.config import Config, DataConfig, DistilConfig, SearchConfig, StudentConfig, TeacherConfig, TrainConfig


def get_config() -> Config:
    """Student wrn_10_1, 5,000 training images, ten epochs, joint search."""
    return Config(
        data=DataConfig(name="cifar100", batch_size=50, train_limit_per_class=50, crop_padding=4, flip=True, views=2),
        teacher=TeacherConfig(cache_gib=12),
        student=StudentConfig(name="wrn_10_1"),
        train=TrainConfig(epochs=10, learning_rate=0.1, evaluate_every=10),
        search=SearchConfig(mode="joint", objective="bridge", epochs=6, warmup_epochs=1, beta_learning_rate=2e-2),
        distil=DistilConfig(methods={"dfa": None, "kd": 3.0, "attention_transfer": 250.0, "similarity_preserving": 188.0}),
    )
