"""How colourful, how contrasted and how sharp pictures are."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, in BT.601
_LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


def appearance_of(images: Tensor) -> dict[str, Tensor]:
    """Means over ``images`` [N, 1 or 3, H, W] in [-1, 1]; H and W are at least 3.

    Returns:
        ``saturation``, the mean chroma ``sqrt(Cb^2 + Cr^2)`` of BT.601, not of grey images; ``contrast``, the standard
        deviation of an image's luma; ``sharpness``, the variance of the luma's Laplacian. All in units of the images.
    """
    images = images.double()
    found: dict[str, Tensor] = {}
    luma = images
    if images.shape[1] == 3:
        luma = torch.einsum("nchw,c->nhw", images, images.new_tensor(_LUMA))[:, None]
        red, _, blue = images.split(1, dim=1)
        found["saturation"] = torch.hypot((blue - luma) / 1.772, (red - luma) / 1.402).mean()
    found["contrast"] = luma.flatten(1).std(1, correction=0).mean()
    found["sharpness"] = conv2d(luma, luma.new_tensor(_LAPLACIAN)[None, None]).flatten(1).var(1, correction=0).mean()
    return found
