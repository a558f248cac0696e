"""CIFAR-100 at a scale that affords many seeds on two cores: the experiments of RESULTS.md.

Compares every method and every aggregation within one budget: fifty training images per class, ten epochs, the student
wrn_10_1, and your own trained teacher as a .keras file, whose outputs for two views of each image are cached on disk
(9 GB). The weights of the methods were chosen on a validation split. bin/compare.py uses the methods that each row
names; for bin/run.py and bin/distil.py set distil.methods yourself.

    python bin/compare.py --config=configs/cifar100_evidence.py --methods=plain,kd,margin,dfa --seeds=0,1,2 \\
        --set data.data_dir=DIR --set teacher.path=FILE

Cost: two to four minutes per student on one of two cores, and as much for its search.
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
