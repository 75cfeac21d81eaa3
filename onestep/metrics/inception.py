"""The Inception network of published FIDs: NVIDIA's TorchScript port of the original of 2015."""

import os
import urllib.request
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from onestep.files import atomic_file, hash_file
from onestep.folders import is_cache_folder, process_folder
from onestep.metrics.features import FeatureNetwork
from onestep.ranges import PathText, Samples, Text


class InceptionFeatures(FeatureNetwork):
    """``inception-2015-12-05.pt``, the FID network of EDM, SiD, DMD2 and others. It resizes images itself.

    A TorchScript file is a program, and loading it runs it. It is loaded only if its hash is the expected one.

    Args:
        path: the file.
        sha256: its hash.
        url: source of the file if it does not exist; None for no download.
        protocol_samples: samples of a published value.

    Raises:
        ValueError: if the file does not exist and cannot be fetched, or its hash differs.
    """

    def __init__(self, path: PathText, sha256: Text, url: Text | None, protocol_samples: Samples | None) -> None:
        super().__init__()
        file = Path(os.path.expanduser(path))
        if not file.is_file():
            file = _writable(file)
            fetch(file, sha256, url)
        content_hash = hash_file(file)
        if content_hash != sha256.lower():
            raise ValueError(
                f"{file} has the sha256 {content_hash}, not {sha256}, and is not loaded: delete it to fetch it again, "
                "or give the hash of a file that you trust as features.sha256=..."
            )
        self.title, self.protocol_samples, self.sha256 = file.name, protocol_samples, content_hash
        self.network = torch.jit.load(str(file), map_location="cpu")
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, 2048], float32, of uint8 images [B, 1 or 3, H, W]."""
        return self.network(_as_rgb(images), return_features=True).flatten(1)

    def classify(self, images: Tensor) -> Tensor:
        """Class logits [B, K] for the Inception Score: the log of the softmax without the output bias."""
        probabilities = self.network(_as_rgb(images), no_output_bias=True)
        return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()

    def fingerprint(self) -> str:
        return self.sha256


def _as_rgb(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def _writable(file: Path) -> Path:
    """``file``, or one of the process alone if ``file`` is in the package's own cache, which cannot be written."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
    if not is_cache_folder(file) or (file.parent.is_dir() and os.access(file.parent, os.W_OK)):
        return file
    print(f"{file.name} cannot be kept in {file.parent}: it is fetched for this run alone", flush=True)
    return process_folder() / file.name


def fetch(path: Path, sha256: str, url: str | None) -> None:
    """Fetch ``url`` to ``path``; the file is written only if it is complete and has the hash ``sha256``.

    Raises:
        ValueError: if the download fails or the hash differs.
    """
    if url is None:
        raise ValueError(f"no feature network at {path}, and features.url is null: give its path as features.path=...")
    try:
        with atomic_file(path) as temporary:
            with urllib.request.urlopen(url, timeout=60) as answer, temporary.open("wb") as file:
                total = int(answer.headers.get("Content-Length") or 0) or None
                with tqdm(total=total, desc=path.name, unit="B", unit_scale=True, leave=False) as bar:
                    while block := answer.read(1 << 20):
                        bar.update(file.write(block))
            if (content_hash := hash_file(temporary)) != sha256.lower():
                raise ValueError(f"its sha256 is {content_hash}, not {sha256}")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{url} could not be fetched to {path} ({error}): fetch it yourself and give features.path=..."
        ) from error
