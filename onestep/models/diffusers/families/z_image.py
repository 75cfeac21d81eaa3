"""Z-Image."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from onestep.denoiser import Condition
from onestep.models.diffusers.families.base import QWEN3_CHAT, TransformerFamily, refuse_graph

_DEFAULT_SIZE = 128  # of 1,024 pixels, ZImagePipeline's default; the config has no size
_LENGTH = 512  # of prompts, the pipeline's


def _encode(pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, _ = pipeline.encode_prompt(list(prompts), device, do_classifier_free_guidance=False)
    lengths = torch.tensor([len(each) for each in embeds], device=device)
    padded = pad_sequence([*embeds, embeds[0].new_zeros(_LENGTH, embeds[0].shape[1])], batch_first=True)[:-1]
    mask = torch.arange(_LENGTH, device=device) < lengths[:, None]
    return {"encoder_hidden_states": padded, "encoder_attention_mask": mask}


class ZImage(TransformerFamily):
    """``ZImageTransformer2DModel``: its time is 1 for the image, and its output points to the image.

    A guidance of g is 1 + g here: the pipeline adds g times the difference to the prompt's own prediction.
    """

    since = (0, 42)
    pipelines: ClassVar = {"ZImagePipeline": _encode}
    text_encoders = ("Qwen3Model", "Qwen3ForCausalLM")
    chat_template = QWEN3_CHAT
    call_options: ClassVar = {"guidance_scale": 0.0}
    spaces_steps_equally = True

    def check(self, config: Mapping[str, Any]) -> None:
        if config.get("siglip_feat_dim") is not None or 2 not in config["all_patch_size"]:
            raise ValueError(
                f"a ZImageTransformer2DModel with siglip_feat_dim={config.get('siglip_feat_dim')} and all_patch_size="
                f"{config['all_patch_size']}: expected None, since networks of editing are not supported, and a 2"
            )

    def image_shape(self, config: Mapping[str, Any], size: int | None) -> tuple[int, int, int]:
        size = _DEFAULT_SIZE if size is None else size
        return config["in_channels"], size, size

    def side_divisor(self, config: Mapping[str, Any]) -> int:
        return 2

    def condition_keys(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        return ("encoder_hidden_states", "encoder_attention_mask")

    def call(self, network: Any, x: Tensor, timestep: Tensor, condition: Condition, guidance: float) -> Tensor:
        refuse_graph(network)
        lengths = condition["encoder_attention_mask"].bool().sum(1).tolist()  # half precision would round a sum
        text = [states[:length] for states, length in zip(condition["encoder_hidden_states"], lengths, strict=True)]
        outputs = network(list(x[:, :, None].unbind()), 1 - timestep / 1000, text, return_dict=False)[0]
        return -torch.stack(list(outputs))[:, :, 0]  # without its axis of frames

    def level_embeddings(self, network: Any) -> list[nn.Module]:
        return [network.t_embedder.mlp[-1]]

    def blocks(self, network: Any) -> Any:
        return network.layers

    def patch_size(self, network: Any) -> int:
        return 2

    def width(self, network: Any) -> int:
        return network.config["dim"]
