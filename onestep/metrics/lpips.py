"""The networks of LPIPS, as feature networks: AlexNet and VGG-16 with LPIPS's weights of their channels."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from onestep.assets import ASSETS
from onestep.files import hash_file
from onestep.metrics.features import FeatureNetwork
from onestep.ranges import PathText, Text, checked
from onestep.reading import one_line, read_tensors

Backbone = Literal["alex", "vgg"]

# Convolutions as (channels, kernel, stride, padding) or channels of 3x3, each with a ReLU; "P" halves the sides. The
# layers have torchvision's numbers; LPIPS reads the maps of LAYERS.
_LAYOUTS: dict[Backbone, list[tuple[int, int, int, int] | int | str]] = {
    "alex": [(64, 11, 4, 2), "P", (192, 5, 1, 2), "P", 384, 256, 256],
    "vgg": [64, 64, "P", 128, 128, "P", 256, 256, 256, "P", 512, 512, 512, "P", 512, 512, 512],
}
_LAYERS: dict[Backbone, tuple[int, ...]] = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}
_POOLING = {"alex": 3, "vgg": 2}  # side of the window, which moves by 2
_NAMES = {"alex": "AlexNet", "vgg": "VGG-16"}
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pixels in [-1, 1]


@checked
class LPIPSFeatures(FeatureNetwork):
    """The feature maps that LPIPS 0.1 compares (Zhang et al. 2018, arXiv 1801.03924), with its weights of channels.

    Args:
        backbone: "alex" or "vgg".
        path: torchvision's file of the network's weights; None: it is fetched once, into torch.hub's cache.
        url: of the file.
        sha256: the first digits of its hash, eight at least.

    Raises:
        ValueError: for a file that cannot be fetched, has another hash, or holds no such weights.
    """

    def __init__(self, backbone: Backbone, path: PathText | None, url: Text, sha256: Text) -> None:
        super().__init__()
        self.title = f"LPIPS 0.1, {_NAMES[backbone]}"
        file = _fetched(url) if path is None else Path(path)
        if not file.is_file():
            raise ValueError(f"no weights of {_NAMES[backbone]} at {file}: give torchvision's file {url}")
        content_hash = hash_file(file)
        if len(sha256) < 8 or not content_hash.startswith(sha256.lower()):
            raise ValueError(
                f"{file} has the sha256 {content_hash}, expected one that begins with {sha256} (8 digits at least): "
                f"give torchvision's file {url}"
            )
        with torch.device("meta"):
            self.layers = convolutions(backbone)
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            own = {name.removeprefix("features."): one for name, one in state.items() if name.startswith("features.")}
            self.layers.load_state_dict(own, assign=True)
        except Exception as error:  # of unpickling too, which runs nothing
            raise ValueError(
                f"{file} holds no weights of torchvision's {_NAMES[backbone]}: {one_line(error, 300)}"
            ) from error
        self.read = _LAYERS[backbone]
        weights = read_tensors(ASSETS / "lpips.safetensors")
        self.map_weights = [weights[f"{backbone}.{place}"] for place in range(len(self.read))]
        self.eval().requires_grad_(False)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The activations of LPIPS's five layers."""
        shift, scale = (torch.tensor(values, device=images.device)[:, None, None] for values in (_SHIFT, _SCALE))
        x, maps = (images.float() / 127.5 - 1 - shift) / scale, []
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in self.read:
                maps.append(x)
        return maps


def convolutions(backbone: Backbone) -> nn.Sequential:
    """A backbone's convolutional part, without the last pooling, which LPIPS does not read."""
    layers: list[nn.Module] = []
    before = 3
    for entry in _LAYOUTS[backbone]:
        if isinstance(entry, str):
            layers.append(nn.MaxPool2d(_POOLING[backbone], 2))
            continue
        after, kernel, stride, padding = (entry, 3, 1, 1) if isinstance(entry, int) else entry
        layers += [nn.Conv2d(before, after, kernel, stride, padding), nn.ReLU()]
        before = after
    return nn.Sequential(*layers)


def _fetched(url: str) -> Path:
    """The file of ``url`` in torch.hub's cache, fetched if it is not there.

    Raises:
        ValueError: if it cannot be fetched.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), progress=False)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"{url} could not be fetched to {file} ({one_line(error, 200)}): fetch it yourself, and give its path "
                "as ...network.path=..."
            ) from error
    return file
