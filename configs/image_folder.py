"""Your own images: a folder with one folder per class, a keras.applications network as the teacher, a student of another family.

A starting point for your own images. It trains both networks from scratch; to use a teacher that you have, trained on raw
pixels 0..255, set teacher.path.

    python bin/run.py --config=configs/image_folder.py --set data.data_dir=DIR
    python bin/export.py --config=configs/image_folder.py --set data.data_dir=DIR --formats=all

Cost: depends on the number and size of the images.
"""

from dfa_tf.config import Config, DataConfig, DistilConfig, SearchConfig, StudentConfig, TeacherConfig, TrainConfig


def get_config() -> Config:
    """Teacher MobileNet of keras.applications, student wrn_10_1, images of 64x64, joint search."""
    return Config(
        data=DataConfig(name="image_folder", options={"image_size": [64, 64]}, batch_size=64, crop_padding=4, flip=True),
        teacher=TeacherConfig(name="keras_applications:MobileNet"),
        student=StudentConfig(name="wrn_10_1"),
        train=TrainConfig(epochs=10, learning_rate=0.05),
        search=SearchConfig(mode="joint", epochs=4, warmup_epochs=1),
        distil=DistilConfig(methods={"dfa": None, "kd": None}),
    )
