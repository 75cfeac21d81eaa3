"""What a family of diffusers networks is: the call, the features, the prompts and the parts of its pipelines."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.denoiser import Condition

#: Encodes prompts, given the pipeline, to the network's condition, tensors [N, ...] on the device.
Encode = Callable[[Any, list[str], torch.device], dict[str, Tensor]]

#: What Qwen3's own template makes of one message.
QWEN3_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)


class Family(ABC):
    """One class of diffusers networks, with all that its pipelines need elsewhere.

    In all methods ``network`` has that class and ``config`` is its config. Features are those for a discriminator.

    Attributes:
        since: the lowest version of diffusers that it works with, where that is above the package's own.
        pipelines: how its text-to-image pipelines encode prompts, by the pipeline's class.
        negatives: how they encode the empty prompt of guidance, of the pipelines that encode it in another way.
        text_encoders: the classes of their text encoders.
        chat_template: the template, in Jinja, by which their tokenizers make a chat of a prompt; that of a pipeline's
            folder is never run. None for no chat.
        exact: names of tensors in its condition that half precision would round, such as image sizes.
        call_options: further arguments of its pipelines' calls, with which an exported generator draws the same images.
        spaces_steps_equally: True if its pipeline spaces the steps of flow matching equally in t.
    """

    since: ClassVar[tuple[int, int]] = (0, 0)
    pipelines: ClassVar[Mapping[str, Encode]] = {}
    negatives: ClassVar[Mapping[str, Encode]] = {}
    text_encoders: ClassVar[tuple[str, ...]] = ()
    chat_template: ClassVar[str | None] = None
    exact: ClassVar[tuple[str, ...]] = ()
    call_options: ClassVar[Mapping[str, Any]] = {"guidance_scale": 1.0}
    spaces_steps_equally: ClassVar[bool] = False

    def check(self, config: Mapping[str, Any]) -> None:
        """Check that the network is a denoiser of its family.

        Raises:
            ValueError: for other inputs or outputs.
        """
        channels, out_channels = config["in_channels"], config["out_channels"]
        if out_channels not in (None, channels, 2 * channels):
            raise ValueError(
                f"this network maps {channels} channels to {out_channels}: expected {channels}, or twice as many for a "
                "learned variance (networks of inpainting, editing or upscaling are not supported)"
            )

    def image_shape(self, config: Mapping[str, Any], size: int | None) -> tuple[int, int, int]:
        """(channels, height, width) of its images or latents of side ``size``; None for the default side."""
        size = size if size is not None else config["sample_size"]
        if size is None:
            raise ValueError("this network's config has no sample_size: set teacher.size=..., its height and width")
        height, width = (size, size) if isinstance(size, int) else size
        return config["in_channels"], height, width

    def side_divisor(self, config: Mapping[str, Any]) -> int:
        """The number that must divide the height and width of its images or latents."""
        return 1

    def check_size(self, config: Mapping[str, Any], image_shape: tuple[int, int, int]) -> None:
        """Check that the network can halve or cut up images or latents of ``image_shape``.

        Raises:
            ValueError: with the number that must divide their sides.
        """
        divisor, sides = self.side_divisor(config), image_shape[1:]
        if any(side < 1 or side % divisor for side in sides):
            near = max(1, round(sides[0] / divisor)) * divisor
            raise ValueError(
                f"this network takes sides that are multiples of {divisor}, and not {sides[0]}x{sides[1]}: set "
                f"teacher.size={near}, and for images data.resolution={near}"
            )

    def flow_shift(self, image_shape: tuple[int, int, int], steps: int) -> float | None:
        """The logarithm of the time shift for its pipeline's ``steps``; None for the scheduler's own line in tokens."""
        return None

    def label_dim(self, config: Mapping[str, Any]) -> int:
        """The number of classes; 0 for none."""
        return 0

    def condition_keys(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the tensors in the network's condition; by default the labels, if it has classes."""
        return ("labels",) if self.label_dim(config) else ()

    def requires_condition(self, config: Mapping[str, Any]) -> bool:
        """True if every call needs its condition."""
        return bool(self.condition_keys(config))

    def supports_guidance(self, config: Mapping[str, Any]) -> bool:
        """True if it has an unconditional prediction."""
        return True

    def embeds_guidance(self, config: Mapping[str, Any]) -> bool:
        """True if guidance is an input, which saves the second evaluation."""
        return False

    def size_condition(self, config: Mapping[str, Any], image_size: tuple[int, int]) -> dict[str, Tensor]:
        """The part of the condition [1, ...] that follows from the images' height and width in pixels."""
        return {}

    def comfyui_lora(self, network: Any, layers: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The tensors of a LoRA by ComfyUI's names of the layers; None if it reads diffusers' own.

        Args:
            network: the network with the LoRA.
            layers: its ``lora_A.weight`` and ``lora_B.weight`` by the names of the network's layers, of scale 1.
        """
        return None

    @abstractmethod
    def call(self, network: Any, x: Tensor, timestep: Tensor, condition: Condition, guidance: float) -> Tensor:
        """The network's output [B, C or 2 C, H, W] for its input ``x`` [B, C, H, W] at ``timestep`` [B]."""

    def level_embeddings(self, network: Any) -> list[nn.Module]:
        """The last layers of its embeddings of the timestep; by default of one, the first, as others are of sizes."""
        return timestep_layers(network)[:1]

    @abstractmethod
    def feature_block(self, network: Any) -> nn.Module:
        """The block whose output is the features."""

    @abstractmethod
    def feature_shape(self, network: Any, image_shape: tuple[int, int, int]) -> tuple[int, int, int] | None:
        """(F, h, w) of the features for images or latents of ``image_shape``; None for no features."""

    @abstractmethod
    def features(self, network: Any, output: Any, x: Tensor) -> Tensor:
        """The features [B, F, h, w], given the block's output."""


class UNetFamily(Family):
    """A U-Net, whose features are the output of the middle block."""

    def feature_block(self, network: Any) -> nn.Module:
        return network.mid_block

    def feature_shape(self, network: Any, image_shape: tuple[int, int, int]) -> tuple[int, int, int] | None:
        if network.mid_block is None:
            return None
        halvings = len(network.config["block_out_channels"]) - 1
        sides = [-(-side // 2**halvings) for side in image_shape[1:]]  # each level but the last halves it, rounded up
        return network.config["block_out_channels"][-1], *sides

    def features(self, network: Any, output: Any, x: Tensor) -> Tensor:
        return output


class TransformerFamily(Family):
    """A transformer, whose features are the image tokens after the first half of the blocks."""

    def feature_block(self, network: Any) -> nn.Module:
        blocks = self.blocks(network)
        return blocks[max(0, len(blocks) // 2 - 1)]

    def feature_shape(self, network: Any, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        patch = self.patch_size(network)
        return self.width(network), image_shape[1] // patch, image_shape[2] // patch

    def features(self, network: Any, output: Any, x: Tensor) -> Tensor:
        tokens = output[1] if isinstance(output, tuple) else output  # (text, image)
        height, width = (side // self.patch_size(network) for side in x.shape[2:])
        return tokens[:, : height * width].transpose(1, 2).unflatten(2, (height, width))

    def side_divisor(self, config: Mapping[str, Any]) -> int:
        return config["patch_size"]

    def blocks(self, network: Any) -> Any:
        """Its blocks, in order."""
        return network.transformer_blocks

    def patch_size(self, network: Any) -> int:
        """The side of a token in pixels of the images or latents."""
        return network.config["patch_size"]

    def width(self, network: Any) -> int:
        """The number of channels of a token."""
        return network.inner_dim


def refuse_graph(network: Any) -> None:
    """Refuse a ``network`` that handles the images of a batch one by one while it becomes a graph.

    Raises:
        ValueError: with the network's class, during :func:`torch.export.export`.
    """
    if torch.compiler.is_exporting():
        raise ValueError(
            f"a {type(network).__name__} cuts each prompt of a batch to its own length, which a graph for any batch "
            "cannot: export it as diffusers or as safetensors"
        )


def timestep_layers(network: nn.Module) -> list[nn.Module]:
    """The last layers of all its modules that are diffusers' embedding of a number, in order."""
    from diffusers.models.embeddings import TimestepEmbedding

    return [module.linear_2 for module in network.modules() if isinstance(module, TimestepEmbedding)]


def pack(x: Tensor) -> Tensor:
    """Tokens [B, H W / 4, 4 C] of two by two pixels of latents [B, C, H, W], row by row."""
    return F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int) -> Tensor:
    """The inverse of :func:`pack`, for ``height`` rows of tokens."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height, -1)), 2)
