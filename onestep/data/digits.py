"""scikit-learn's bundled digits: 1,797 grey images of 8x8 pixels in ten classes, without a download."""

from torch import Tensor

from onestep.data.dataset import ImagesInMemory


class Digits(ImagesInMemory):
    """UCI's optical digits in scikit-learn, scaled from 0..16 to [-1, 1]; labels of ten classes."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = Tensor(bunch.images).unsqueeze(1) / 8 - 1
        super().__init__(images, labels=Tensor(bunch.target).long(), num_classes=10)
