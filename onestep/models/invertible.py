"""An invertible network of the details of images, and their density given the low band: a normalising flow."""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from onestep.assets import ASSETS
from onestep.haar import DETAILS, haar, inverse_haar
from onestep.models.edm.layers import zeroed
from onestep.models.weights import TRANSFORMERS_BASE, Weights, arguments_of, load_network, save_network
from onestep.precision import double
from onestep.ranges import PathText, Side, Width, checked
from onestep.reading import read_json

_GREY_LEVEL = 1 / 127.5  # of 8 bits, in units of [-1, 1]
_Nodes = Annotated[int, Ge(1), Le(100)]


@checked
class InvertibleNetwork(nn.Module):
    """The details of images, mapped to N(0, I) given their low band.

    An image is split by the orthonormal Haar transform into its low band and its details. These are scaled by channel,
    and pass ``nodes`` affine couplings that see the low band; between two of them the channels change their order, so
    that the halves change their parts. A coupling is CDDFuse's (arXiv 2211.14461), which HF-Diff's high-frequency loss
    (arXiv 2411.13548) most likely takes; HF-Diff's own network and weights are not public:

        z2 <- z2 + phi(z1, low),    z1 <- z1 exp(rho(z2, low)) + eta(z2, low),    |rho| < 2

    The log of the Jacobian determinant is the sum of all rho and of the scales' logs. In a new network phi, rho and eta
    are 0. It is fully convolutional: images have any even sides.

    Args:
        channels: C of the images.
        width: channels of the layers of phi, and of rho and eta together.
        nodes: number of couplings.
    """

    def __init__(self, channels: Side, width: Width, nodes: _Nodes) -> None:
        super().__init__()
        self.config = {"channels": channels, "width": width, "nodes": nodes}
        self.channels = channels
        bands = DETAILS * channels
        self.log_scale = nn.Parameter(torch.zeros(bands))
        # With an odd number of bands the halves differ in turn, so that every band is in a first half.
        halves = [(bands + number % 2) // 2 for number in range(nodes)]
        self.nodes = nn.ModuleList(_Coupling(half, bands - half, channels, width) for half in halves)

    def forward(self, x: Tensor) -> Tensor:
        """The codes [B, 3 C, H / 2, W / 2] of the details of images [B, C, H, W] in [-1, 1]."""
        return self.encode(x)[1]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The low band [B, C, H / 2, W / 2] of images [B, C, H, W], the codes of their details, and log|det J| [B]."""
        low, (z,) = haar(x, 1)
        z = z * self.log_scale.exp()[:, None, None]
        log_det = self.log_scale.sum() * z[0, 0].numel()
        for node in self.nodes:
            z, of_node = node(z, low)
            z, log_det = z.flip(1), log_det + of_node
        return low, z, log_det

    def decode(self, low: Tensor, z: Tensor) -> Tensor:
        """The images of a low band and the codes of details: the inverse of :meth:`encode`."""
        for node in reversed(self.nodes):
            z = node.inverse(z.flip(1), low)  # type: ignore[operator]
        return inverse_haar(low, z * (-self.log_scale).exp()[:, None, None])

    def bits(self, x: Tensor) -> Tensor:
        """The mean of -log2 p(details | low band) [B] of images [B, C, H, W], for each detail in grey levels of 255.

        Pixels of 8 bits need uniform noise of one grey level, or their density has no bound.
        """
        _, z, log_det = self.encode(x)
        count = z[0].numel()
        log_density = log_det - (z.square() + math.log(2 * math.pi)).flatten(1).sum(1) / 2
        return -(log_density / count + math.log(_GREY_LEVEL)) / math.log(2)

    @torch.no_grad()
    def fit_scales(self, x: Tensor) -> Self:
        """Set the scales to the inverse root mean squares of the detail bands of images [B, C, H, W]; returns itself.

        A new network then is the independent Gaussian of each band.
        """
        squares = double(haar(x, 1)[1][0].square().mean((0, 2, 3)))
        self.log_scale.copy_(-squares.clamp_min(_GREY_LEVEL**2 / 12).log() / 2)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the weights as safetensors, and the constructor's arguments as ``config.json``."""
        save_network(self, Path(folder), json.dumps(self.config), TRANSFORMERS_BASE)


class _Coupling(nn.Module):
    """One coupling of the first ``first`` channels and the other ``second``, given ``context`` channels."""

    bound = 2.0  # of rho

    def __init__(self, first: int, second: int, context: int, width: int) -> None:
        super().__init__()
        self.sizes = [first, second]
        self.phi = _layers(first + context, second, width)
        self.rho_and_eta = _layers(second + context, 2 * first, width)

    def forward(self, z: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """The coupled channels [B, F, h, w], and log|det J| [B]."""
        z1, z2 = z.split(self.sizes, 1)
        z2 = z2 + self.phi(torch.cat([z1, low], 1))
        rho, eta = self._rho_and_eta(z2, low)
        return torch.cat([z1 * rho.exp() + eta, z2], 1), rho.flatten(1).sum(1)

    def inverse(self, z: Tensor, low: Tensor) -> Tensor:
        """The inverse of :meth:`forward`."""
        z1, z2 = z.split(self.sizes, 1)
        rho, eta = self._rho_and_eta(z2, low)
        z1 = (z1 - eta) * (-rho).exp()
        return torch.cat([z1, z2 - self.phi(torch.cat([z1, low], 1))], 1)

    def _rho_and_eta(self, z2: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        rho, eta = self.rho_and_eta(torch.cat([z2, low], 1)).chunk(2, 1)
        return self.bound * (rho / self.bound).tanh(), eta


def _layers(inputs: int, outputs: int, width: int) -> nn.Sequential:
    """Three convolutions, the last of which starts at 0."""
    last = zeroed(nn.Conv2d(width, outputs, 3, padding=1))
    return nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 1), nn.SiLU(), last)


@checked
def load_invertible(path: PathText) -> InvertibleNetwork:
    """A frozen network in eval mode.

    Args:
        path: a folder of :meth:`InvertibleNetwork.save_pretrained`, or the name of a bundled one: "photographs".

    Raises:
        ValueError: if there is none, or its weights do not fit its config.
    """
    bundled = ASSETS / "invertible" / path
    folder = bundled if bundled.is_dir() else Path(path)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"no invertible network at {path!r}: expected the folder invertible of a run of onestep pretrain "
            "invertible, or photographs, the bundled one"
        )
    settings: Any = read_json(folder / "config.json", arguments_of(InvertibleNetwork))
    weights = Weights.find(folder, TRANSFORMERS_BASE)
    return load_network(lambda: InvertibleNetwork(**settings.model_dump()), weights).requires_grad_(False)
