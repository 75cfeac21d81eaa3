"""Qwen-Image."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.denoiser import Condition
from onestep.models.diffusers.families.base import TransformerFamily, pack, unpack

_DEFAULT_SIZE = 128  # QwenImagePipeline's default; the config has no size
_LENGTH = 512  # of prompts, that of the pipeline's call


def _encode(pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, mask = pipeline.encode_prompt(prompts, device, max_sequence_length=_LENGTH)
    mask = torch.ones(embeds.shape[:2], device=device) if mask is None else mask
    rest = _LENGTH - embeds.shape[1]
    return {
        "encoder_hidden_states": F.pad(embeds, (0, 0, 0, rest)),
        "encoder_hidden_states_mask": F.pad(mask, (0, rest)),
    }


class QwenImage(TransformerFamily):
    """``QwenImageTransformer2DModel``: a token has two by two latent pixels.

    Its pipeline also scales a guided prediction to the norm of the prompt's own; here guidance is plain.
    """

    since = (0, 42)
    pipelines: ClassVar = {"QwenImagePipeline": _encode}
    text_encoders = ("Qwen2_5_VLForConditionalGeneration",)
    call_options: ClassVar = {"true_cfg_scale": 1.0}
    spaces_steps_equally = True

    def check(self, config: Mapping[str, Any]) -> None:
        others = ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope", "guidance_embeds")
        found = [name for name in others if config.get(name)]
        if found or config["in_channels"] != 4 * config["out_channels"]:
            raise ValueError(
                f"a QwenImageTransformer2DModel of {config['in_channels']} to {config['out_channels']} channels"
                f"{''.join(f', with {name}' for name in found)}: expected that of Qwen-Image, with four times as many "
                "in as out and none of these (networks of editing, inpainting or layers are not supported)"
            )

    def image_shape(self, config: Mapping[str, Any], size: int | None) -> tuple[int, int, int]:
        size = _DEFAULT_SIZE if size is None else size
        return config["in_channels"] // 4, size, size

    def side_divisor(self, config: Mapping[str, Any]) -> int:
        return 2

    def condition_keys(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        return ("encoder_hidden_states", "encoder_hidden_states_mask")

    def call(self, network: Any, x: Tensor, timestep: Tensor, condition: Condition, guidance: float) -> Tensor:
        height, width = x.shape[2] // 2, x.shape[3] // 2
        mask = condition["encoder_hidden_states_mask"].bool()
        graph = torch.compiler.is_exporting()  # of one length for all batches; the words behind a prompt are masked
        longest = mask.shape[1] if graph else int(mask.sum(1).max())
        with _real_rotations(network.pos_embed) if graph else nullcontext():
            tokens = network(
                pack(x),
                timestep=timestep / 1000,  # the network multiplies it by 1000
                encoder_hidden_states=condition["encoder_hidden_states"][:, :longest],
                encoder_hidden_states_mask=mask[:, :longest],
                img_shapes=[[(1, height, width)]],  # that of the first image is read for all
            ).sample
        return unpack(tokens, height)

    def patch_size(self, network: Any) -> int:
        return 2


@contextmanager
def _real_rotations(pos_embed: Any) -> Iterator[None]:
    """With rotary embeddings in real numbers, which graphs of other programs need, in place of diffusers' complex ones.

    The angle of a position p in a pair of channels k of an axis with d channels is p theta^(-2 k / d).
    """
    from diffusers.models.transformers import transformer_qwenimage

    def angles(positions: Tensor) -> Tensor:
        """Angles [S, D / 2] of ``positions`` [S, 3]."""
        sizes = [torch.arange(0, size, 2) / size for size in pos_embed.axes_dim]
        return torch.cat([positions[:, [axis]] * pos_embed.theta**-size for axis, size in enumerate(sizes)], 1)

    def embed(shapes: Any, max_txt_seq_len: int, device: torch.device) -> tuple[Tensor, Tensor]:
        (_, height, width), *_ = shapes[0]
        rows, columns = (torch.arange(side) - (side - side // 2) for side in (height, width))
        words = max(height // 2, width // 2) + torch.arange(max_txt_seq_len)
        return angles(torch.cartesian_prod(torch.arange(1), rows, columns)), angles(words[:, None].expand(-1, 3))

    def rotate(x: Tensor, angle: Tensor, use_real: bool) -> Tensor:
        """``x`` [B, S, heads, D], each pair of channels turned by its ``angle`` [S, D / 2]."""
        real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        return torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], -1).flatten(-2)

    complex_rotation = transformer_qwenimage.apply_rotary_emb_qwen
    transformer_qwenimage.apply_rotary_emb_qwen, pos_embed.forward = rotate, embed
    try:
        yield
    finally:
        transformer_qwenimage.apply_rotary_emb_qwen = complex_rotation
        del pos_embed.forward  # that of the class again
