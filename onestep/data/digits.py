"""scikit-learn's bundled digits: 1,797 grey images of 8x8 pixels in ten classes, without a download."""

from torch import Tensor

from onestep.data.dataset import ImagesInMemory
from onestep.ranges import checked


@checked
class Digits(ImagesInMemory):
    """UCI's optical digits in scikit-learn, scaled from 0..16 to [-1, 1]; labels of ten classes.

    Args:
        use_labels: False to ignore the labels.
    """

    def __init__(self, use_labels: bool = True) -> None:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = Tensor(bunch.images).unsqueeze(1) / 8 - 1
        if use_labels:
            super().__init__(images, labels=Tensor(bunch.target).long(), num_classes=10)
        else:
            super().__init__(images)
