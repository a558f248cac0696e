"""Hyperparameter tuning on the real images that come with the package.

An example of `tune.space`: it chooses the weight of the distillation, the learning rate and the aggregation for the small
student of configs/bundled.py, by its accuracy on images held out of the training set.

    python bin/tune.py --config=configs/bundled_tune.py --workdir=runs/bundled_tune
    python bin/run.py --config=runs/bundled_tune/tuning/best.json --workdir=runs/bundled_best

Cost: a few minutes on two cores.
"""

from dfa_tf.config import (
    Choice,
    Config,
    DataConfig,
    DistilConfig,
    Float,
    SearchConfig,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
    TuneConfig,
)


def get_config() -> Config:
    """Teacher wrn_16_2, student wrn_10_1, 20 training and 20 validation images per class; 12 trials of three fields."""
    return Config(
        data=DataConfig(
            name="bundled", batch_size=20, train_limit_per_class=40, search_fraction=0.25, validation_fraction=0.5, crop_padding=1
        ),
        teacher=TeacherConfig(name="wrn_16_2"),
        student=StudentConfig(name="wrn_10_1"),
        train=TrainConfig(epochs=60, learning_rate=0.05, evaluate_every=60),
        search=SearchConfig(mode="joint", epochs=10, warmup_epochs=2, beta_learning_rate=2e-2),
        distil=DistilConfig(methods={"dfa": 1.0}, epochs=20),
        tune=TuneConfig(
            tuner="bayesian",
            trials=12,
            initial_trials=6,
            space={
                "distil.learning_rate": Float(low=5e-3, high=0.2, log=True),
                "distil.methods.dfa": Float(low=0.1, high=30.0, log=True),
                "distil.aggregation": Choice(values=("searched", "last", "average")),
            },
        ),
    )
