"""The encoder and decoder that the published U-Nets have in common, with the layers' names of EDM's checkpoints."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence

from torch import Tensor, nn


class UNet(nn.Module, ABC):
    """A U-Net of residual blocks, several at each resolution.

    A subclass builds its layers with :meth:`build_encoder`, then :meth:`build_decoder`. Their ``block`` makes a block
    of ``(in_channels, out_channels)``, with self-attention for ``attention=True``, and with half or twice the
    resolution for ``resample="down"`` or ``"up"``. Their ``levels`` are those of
    :func:`onestep.models.edm.layers.levels_of`; the levels of the resolutions ``attends`` have self-attention.

    Attributes:
        enc, dec: the layers by name.
        feature_layers: positions in the encoder of its last layer at each resolution, the features of discriminators.
        feature_shapes: the shapes of these features.
        level_layer: the name of the last linear layer of the embedding of the noise level.
    """

    level_layer = "map_layer1"

    def build_encoder(
        self, levels: Sequence[tuple[int, int]], num_blocks: int, attends: Collection[int],
        first: nn.Module, channels: int, block: Callable[..., nn.Module],
        shortcut: Callable[[int], nn.Module] | None = None,
    ) -> list[int]:  # fmt: skip
        """Build the encoder; returns the channels of its outputs.

        Args:
            levels, num_blocks, attends, block: see the class.
            first: the first layer.
            channels: of its output.
            shortcut: makes the layer that adds the images at a lower resolution, given its channels; None for none.
        """
        self.enc = nn.ModuleDict()
        outputs: list[int] = []
        for res, out_channels in levels:
            if res == levels[0][0]:
                self.enc[f"{res}x{res}_conv"] = first
            else:
                self.enc[f"{res}x{res}_down"] = block(channels, channels, resample="down")
                if shortcut is not None:
                    self.enc[f"{res}x{res}_aux_residual"] = shortcut(channels)
            outputs.append(channels)
            for index in range(num_blocks):
                self.enc[f"{res}x{res}_block{index}"] = block(channels, out_channels, attention=res in attends)
                channels = out_channels
                outputs.append(channels)
        self.feature_layers = tuple(range(num_blocks, len(outputs), num_blocks + 1))
        self.feature_shapes = [(channels, res, res) for res, channels in levels]
        return outputs

    def build_decoder(
        self, levels: Sequence[tuple[int, int]], num_blocks: int, attends: Collection[int],
        encoded: Sequence[int], block: Callable[..., nn.Module], last_attends: bool = False,
    ) -> None:  # fmt: skip
        """Build the decoder, whose blocks use the encoder's outputs in reverse order.

        Args:
            levels, num_blocks, attends, block: see the class.
            encoded: the result of :meth:`build_encoder`.
            last_attends: True for self-attention in a level's last block alone.
        """
        self.dec = nn.ModuleDict()
        skips = list(encoded)
        channels = skips[-1]
        for res, out_channels in reversed(levels):
            if res == levels[-1][0]:
                self.dec[f"{res}x{res}_in0"] = block(channels, channels, attention=True)
                self.dec[f"{res}x{res}_in1"] = block(channels, channels)
            else:
                self.dec[f"{res}x{res}_up"] = block(channels, channels, resample="up")
            for index in range(num_blocks + 1):
                attention = res in attends and (index == num_blocks or not last_attends)
                self.dec[f"{res}x{res}_block{index}"] = block(channels + skips.pop(), out_channels, attention=attention)
                channels = out_channels

    @abstractmethod
    def embed(self, c_noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None = None) -> Tensor:
        """The embedding [B, C] of ``c_noise`` [B], one-hot ``labels`` [B, label_dim] and ``augment_labels``.

        Networks without augmentation ignore the latter. No labels are the zero vector, as after label dropout.
        """

    def encode(self, x: Tensor, embedding: Tensor, stop: int | None = None) -> list[Tensor]:
        """The outputs of the encoder's layers up to layer ``stop`` (exclusive), in order; the last is the deepest."""
        outputs: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, embedding) if outputs else layer(x)
            outputs.append(x)
            if len(outputs) == stop:
                break
        return outputs

    @abstractmethod
    def decode(self, encoded: Sequence[Tensor], embedding: Tensor) -> Tensor:
        """The network's output [B, C, H, W] for the outputs of :meth:`encode`."""

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """The raw output [B, C, H, W] at ``x`` [B, C, H, W] and ``c_noise`` [B]; see :meth:`embed` for the labels."""
        embedding = self.embed(c_noise, labels, augment_labels)
        return self.decode(self.encode(x, embedding), embedding)
