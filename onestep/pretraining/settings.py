"""Settings of the trainings of a classifier and of an invertible network.

Their values are in conf/pretrain_features.yaml and conf/pretrain_invertible.yaml.
"""

from dataclasses import dataclass

from onestep.ranges import BatchSize, Decay, Images, NonNegative, Positive, PositiveRate, Rate, Steps, checked


@checked
@dataclass(frozen=True)
class ClassifierSettings:
    """Settings of a classifier's training.

    Args:
        epochs: passes over the images.
        batch_size: images per step.
        lr: the highest learning rate of a one-cycle schedule (arXiv 1708.07120).
        weight_decay: of AdamW.
        noise: standard deviation of the noise on the images, in units of [-1, 1].
        label_smoothing: probability that the target spreads evenly over the classes.

    Raises:
        ValueError: for a number out of its range.
    """

    epochs: Steps
    batch_size: BatchSize
    lr: PositiveRate
    weight_decay: Rate
    noise: NonNegative
    label_smoothing: Decay


@checked
@dataclass(frozen=True)
class InvertibleSettings:
    """Settings of the training of an invertible network.

    Args:
        total_images: images in all steps.
        batch_size: images per step.
        lr: the highest learning rate of a one-cycle schedule (arXiv 1708.07120), of Adam.
        largest_gradient: the gradient is scaled down to this norm.

    Raises:
        ValueError: for a number out of its range.
    """

    total_images: Images
    batch_size: BatchSize
    lr: PositiveRate
    largest_gradient: Positive
