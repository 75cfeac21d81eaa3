"""Differentiable augmentation of what a discriminator sees (Zhao et al. 2020, arXiv 2006.10738)."""

from torch import Tensor, arange

from onestep.ranges import Fraction, checked


@checked
class DifferentiableAugmentation:
    """Random brightness, saturation, contrast, translation and cutout of real and generated images.

    The discriminator sees no image as it is, so that it cannot learn its training images by heart, and the generator's
    gradient passes through the transforms. Pixels that come in by the translation, or are cut out, are 0.

    Args:
        brightness: largest shift of all values of an image; 0 for none.
        saturation: largest change of the factor of a pixel's differences from its mean over channels.
        contrast: largest change of the factor of the differences from the image's mean.
        translation: largest shift along each axis, as a fraction of the side.
        cutout: side of the rectangle that is cut out, as a fraction of the image's side.

    Attributes:
        numbers: uniform numbers in [0, 1) that an image needs.
    """

    numbers = 7

    def __init__(
        self, brightness: Fraction, saturation: Fraction, contrast: Fraction, translation: Fraction, cutout: Fraction
    ) -> None:
        self.brightness, self.saturation, self.contrast = brightness, saturation, contrast
        self.translation, self.cutout = translation, cutout

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Augmented ``images`` [B, C, H, W] in [-1, 1], a differentiable function of them, by ``numbers`` [B, 7]."""
        signed = 2 * numbers[:, :3, None, None, None] - 1
        images = images + self.brightness * signed[:, 0]
        for factor, dims in ((self.saturation * signed[:, 1], (1,)), (self.contrast * signed[:, 2], (1, 2, 3))):
            images = images + factor * (images - images.mean(dims, keepdim=True))
        down, right, top, left = numbers[:, 3:, None, None, None].unbind(1)
        images = self._moved(self._moved(images, down, 2), right, 3)
        return images * ~(self._is_cut(images, top, 2) & self._is_cut(images, left, 3))

    def _moved(self, images: Tensor, number: Tensor, dim: int) -> Tensor:
        """Images that are moved along an axis by up to a part of their side, by a ``number`` [B, 1, 1, 1] of each."""
        size = images.shape[dim]
        most = int(size * self.translation + 0.5)
        source = _positions(images, dim) + most - (number * (2 * most + 1)).floor().long()
        index = source.clamp(0, size - 1).expand_as(images)
        return images.gather(dim, index) * ((source >= 0) & (source < size))

    def _is_cut(self, images: Tensor, number: Tensor, dim: int) -> Tensor:
        """True for the rows or columns of the rectangle, which can lie in part outside of the image."""
        size = images.shape[dim]
        side = int(size * self.cutout + 0.5)
        first = (number * (size + 1 - side % 2)).floor().long() - side // 2
        positions = _positions(images, dim)
        return (positions >= first) & (positions < first + side)


def _positions(images: Tensor, dim: int) -> Tensor:
    """The numbers of the rows or columns, along their axis."""
    shape = [1, 1, 1, 1]
    shape[dim] = -1
    return arange(images.shape[dim], device=images.device).view(shape)
