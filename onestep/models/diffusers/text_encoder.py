"""The text encoders of a text-to-image pipeline of diffusers.

A pipeline's folder may come from anybody. Its components are built here from an allowed class each, so that no module
that a file names is imported; weights are safetensors that fit their config.
"""

import importlib.util
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor

from onestep.models.diffusers.families import FAMILIES, diffusers_class
from onestep.models.diffusers.families.base import Encode, Family
from onestep.models.diffusers.folder import PipelineIndex, part_files, quiet, required_parts
from onestep.models.weights import TRANSFORMERS_BASE, Weights, build_outline, read_config
from onestep.reading import one_line

_TOKENIZERS = (
    "CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast", "PreTrainedTokenizerFast",
    "TokenizersBackend", "GemmaTokenizer", "GemmaTokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast",
)  # fmt: skip


def require_text_libraries() -> None:
    """Raise a ValueError if the package transformers is missing."""
    if importlib.util.find_spec("transformers") is None:
        raise ValueError("text encoders need the package transformers: pip install 'onestep[text]'")


class TextEncoder:
    """Encodes prompts to the condition of a text-to-image network, by the pipeline's ``encode_prompt``.

    Which pipelines it supports, and how, is said by the families of their networks. It does not load the network.

    Args:
        folder: the pipeline's folder.
        device, dtype: device and dtype of the encoders.
        variant: variant of their weights; None for the default.

    Raises:
        ValueError: for another class of pipeline or component, weights that do not fit their config, or if the package
            transformers is missing.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        variant: str | None = None,
    ) -> None:
        require_text_libraries()
        index = PipelineIndex.of(folder)
        self.family = self.check_kinds(folder, index)
        self.kind = index.kind
        self.device = torch.device(device)
        with quiet():
            self.pipeline = _load_without_network(folder, index, self.family, dtype, variant)
        for name in self.encoders(index):
            getattr(self.pipeline, name).to(self.device)

    @staticmethod
    def check_kinds(folder: Path, index: PipelineIndex) -> Family:
        """The family of the pipeline, whose text encoders and tokenizers are of supported classes.

        Raises:
            ValueError: for another class.
        """
        family = next((family for family in FAMILIES.values() if index.kind in family.pipelines), None)
        if family is None:
            supported = [name for known in FAMILIES.values() for name in known.pipelines]
            raise ValueError(
                f"{folder}: prompts for a {index.kind} are not supported, expected one of {', '.join(supported)}"
            )
        for name, kind in index.components.items():
            for part, kinds in (("tokenizer", _TOKENIZERS), ("text_encoder", family.text_encoders)):
                if name.startswith(part) and kind not in kinds:
                    raise ValueError(
                        f"{folder / name}: a {part} {kind} is not supported: expected one of {', '.join(kinds)}"
                    )
        return family

    @staticmethod
    def encoders(index: PipelineIndex) -> list[str]:
        """The names of the text encoders in a pipeline's index."""
        return [name for name in index.components if name.startswith("text_encoder")]

    @staticmethod
    def files(folder: Path, variant: str | None = None) -> list[Path]:
        """The files that the embeddings of the pipeline in ``folder`` depend on, in a fixed order."""
        parts = [part for part in sorted(folder.iterdir()) if part.name.startswith(("text_encoder", "tokenizer"))]
        return [file for part in parts for file in part_files(part, variant)]

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], image_size: tuple[int, int]) -> dict[str, Tensor]:
        """The condition of ``prompts``: tensors [N, ...] on the CPU, with the names of the network's arguments.

        ``image_size`` is the height and width of the images in pixels, an input of some networks, such as SDXL's.
        """
        return self._encode(self.family.pipelines[self.kind], list(prompts), image_size)

    @torch.no_grad()
    def empty(self, image_size: tuple[int, int]) -> dict[str, Tensor]:
        """The pipeline's condition [1, ...] of the empty prompt, for guidance."""
        condition = self._encode({**self.family.pipelines, **self.family.negatives}[self.kind], [""], image_size)
        if self.pipeline.config.get("force_zeros_for_empty_prompt"):  # SDXL
            zeros = {name: torch.zeros_like(condition[name]) for name in ("encoder_hidden_states", "text_embeds")}
            condition |= zeros
        return condition

    def _encode(self, encode: Encode, prompts: list[str], image_size: tuple[int, int]) -> dict[str, Tensor]:
        condition = encode(self.pipeline, prompts, self.device)
        network: Any = getattr(self.pipeline, "unet", None) or self.pipeline.transformer
        for name, sizes in self.family.size_condition(network.config, image_size).items():
            condition[name] = sizes.repeat(len(prompts), 1)
        return {name: tensor.cpu().contiguous() for name, tensor in condition.items()}


def _load_without_network(
    folder: Path, index: PipelineIndex, family: Family, dtype: torch.dtype, variant: str | None
) -> Any:
    """The pipeline of text encoders and tokenizers alone, with its network's config but not its weights."""
    parts: dict[str, Any] = {"vae": None}
    for name, kind in index.components.items():
        place = folder / name
        if name in ("unet", "transformer") and kind in FAMILIES:
            with init_empty_weights():
                parts[name] = diffusers_class(kind).from_config(read_config(place / "config.json"))
        elif name.startswith("tokenizer"):
            parts[name] = _load_tokenizer(place, kind)
            parts[name].chat_template = family.chat_template  # a template of the folder's own would be a program
        elif name.startswith("text_encoder"):
            parts[name] = _load_encoder(place, kind, dtype, variant)
    pipeline_class = diffusers_class(index.kind)
    given = parts | index.settings | {"requires_safety_checker": False}
    names = inspect.signature(pipeline_class.__init__).parameters
    absent = dict.fromkeys(required_parts(pipeline_class))
    return pipeline_class(**{name: part for name, part in (absent | given).items() if name in names})


def _load_tokenizer(folder: Path, kind: str) -> Any:
    import transformers

    for file in folder.glob("*config.json"):
        read_config(file)  # refuses code of its own
    try:
        return getattr(transformers, kind).from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers' library raises plain exceptions
        raise _unreadable(folder, kind, error) from error


def _load_encoder(folder: Path, kind: str, dtype: torch.dtype, variant: str | None) -> Any:
    import transformers

    if (folder / "adapter_config.json").exists():
        raise ValueError(f"{folder} has an adapter_config.json, which names another model: merge the adapter first")
    encoder_class = getattr(transformers, kind)
    settings = read_config(folder / "config.json")
    weights = Weights.find(folder, TRANSFORMERS_BASE, variant, floats=False)
    outline = build_outline(lambda: encoder_class(encoder_class.config_class(**settings)), weights)
    if (count := sum(parameter.numel() for parameter in outline.parameters())) > 1.01 * weights.count:
        raise ValueError(f"{folder}: its config describes {count:,} numbers, and its weights are {weights.count:,}")
    try:
        encoder, report = encoder_class.from_pretrained(
            str(folder), config=encoder_class.config_class(**settings), variant=weights.variant, dtype=dtype,
            use_safetensors=True, local_files_only=True, output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # whatever transformers raises for files that are damaged or do not fit
        raise _unreadable(folder, kind, error) from error
    if missing := sorted(report["missing_keys"]):  # transformers would leave them random
        raise ValueError(f"{folder}: its weights lack {len(missing)} tensors of its config, such as {missing[:3]}")
    if broken := [name for name, value in encoder.named_parameters() if not value.isfinite().all()]:
        raise ValueError(f"{folder}: the weight {broken[0]} is not finite: take other weights")
    return encoder.eval()


def _unreadable(folder: Path, kind: str, error: Exception) -> ValueError:
    reason = one_line(error, 400) or type(error).__name__
    return ValueError(f"{folder} holds no {kind} that can be read: {reason}")
