"""The whole pipeline within minutes, on real images that come with the package.

Runs both stages of DFA on scikit-learn's handwritten digits, with few training images so that the networks
differ. It shows that the pipeline works; it is far too small to compare methods.

    python bin/run.py --config=configs/bundled.py --workdir=runs/bundled

Cost: a minute or two on two cores.
"""

from dfa_tf.config import Config, DataConfig, DistilConfig, SearchConfig, StudentConfig, TeacherConfig, TrainConfig


def get_config() -> Config:
    """Teacher wrn_16_2, student wrn_10_1, 20 training images per class."""
    return Config(
        data=DataConfig(name="bundled", batch_size=20, train_limit_per_class=20, crop_padding=1),
        teacher=TeacherConfig(name="wrn_16_2"),
        student=StudentConfig(name="wrn_10_1"),
        train=TrainConfig(epochs=60, learning_rate=0.05, evaluate_every=5),
        search=SearchConfig(epochs=10, warmup_epochs=2, beta_learning_rate=2e-2),
        distil=DistilConfig(methods={"dfa": None}),
    )
