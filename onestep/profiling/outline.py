"""A preset whose networks take no memory: fake tensors, which have shapes alone, for a prediction of its memory."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self, get_args

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from onestep.config import check_config, instantiate
from onestep.data.dataset import ImageDataset
from onestep.denoiser import Condition
from onestep.distillation.pairs import TeacherPairs
from onestep.engine.settings import CompileMode, TrainingSettings
from onestep.models.base import DenoiserNetwork
from onestep.profiling.subject import Subject, composed

_LOADER = "onestep.models.diffusers.loading."
# Tokens of a prompt by the network's class, as diffusers' pipelines pad it: CLIP's, both of SD3, T5's.
_TOKENS = {"UNet2DConditionModel": 77, "SD3Transformer2DModel": 77 + 256, "FluxTransformer2DModel": 512}
# Settings whose memory no prediction has been compared with.
_UNPREDICTED = (
    ("precision", ("fp16",), "precision=bf16 has numbers of the same size"),
    ("compile", (True, *get_args(CompileMode)), "predict compile=false"),
    ("shard", (True,), "predict shard=false; the parameters, gradients, states and averages are divided by the number "
     "of processes, and one block of each network is whole at a time"),
)  # fmt: skip


class Zeros(ImageDataset):
    """In place of training data: zeros of the shapes that a teacher takes.

    Args:
        teacher: the teacher.
        images: True for real images or latents; False for conditions alone.
    """

    def __init__(self, teacher: Any, images: bool) -> None:
        self.image_shape, self.label_dim = teacher.image_shape, teacher.label_dim
        self.images, self.condition = images, condition_shapes(teacher)

    def __len__(self) -> int:
        return 2**16  # more than a batch

    def __getitems__(self, indices: Sequence[int]) -> tuple[Any, Condition]:
        count = len(indices)
        condition = {name: torch.zeros(count, *shape) for name, shape in self.condition.items()}
        return torch.zeros(count, *self.image_shape) if self.images else None, condition

    def fingerprint(self) -> str:
        return "zeros"


class ZeroPipeline:
    """In place of a teacher's pipeline: embeddings are zeros, and nothing is decoded.

    Args:
        condition: shapes of one sample's condition, by name.
    """

    def __init__(self, condition: dict[str, tuple[int, ...]]) -> None:
        self.condition = condition

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def unconditional(self) -> Condition:
        """Zeros [1, ...]."""
        return {name: torch.zeros(1, *shape) for name, shape in self.condition.items()}

    def decoder(self, channels: int) -> Callable[[Tensor], Tensor]:
        """A function that returns latents as they are."""
        return lambda latents: latents


def condition_shapes(teacher: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of one sample's condition for ``teacher``, by name.

    Raises:
        ValueError: for a condition of which they are not known.
    """
    config = getattr(getattr(teacher, "network", None), "config", {})
    kind = type(getattr(teacher, "network", None)).__name__
    width = config.get("cross_attention_dim", config.get("joint_attention_dim", 0))
    shapes: dict[str, tuple[int, ...]] = {"labels": (teacher.label_dim,), "time_ids": (6,)}
    if kind in _TOKENS:
        shapes["encoder_hidden_states"] = (_TOKENS[kind], width)
    if "pooled_projection_dim" in config:
        shapes["pooled_projections"] = (config["pooled_projection_dim"],)
    if config.get("addition_embed_type") == "text_time":  # SDXL's pooled text is beside the embeddings of six numbers
        both = config["projection_class_embeddings_input_dim"]
        shapes["text_embeds"] = (both - 6 * config["addition_time_embed_dim"],)
    keys = getattr(teacher, "condition_keys", ("labels",) if teacher.label_dim else ())
    if unknown := [name for name in keys if name not in shapes]:
        raise ValueError(f"the memory of a teacher that takes {', '.join(unknown)} is not predicted")
    return {name: shapes[name] for name in keys}


def planned(overrides: Sequence[str]) -> DictConfig:
    """The configuration of ``onestep train`` for the ``overrides``, with what decides its memory alone.

    It has one update of each kind, at most two micro-batches, no evaluation, and the precision of a GPU in place of
    ``auto``.

    Raises:
        ValueError, HydraException: if the overrides are not valid, or for settings that are not predicted.
    """
    config = composed([*overrides, "device=cpu", "metrics=[]"])
    settings: TrainingSettings = instantiate(config.training)
    micro_batch = settings.per_process(1) // settings.accumulation
    data = None if config.data is None else {"images": config.data.get("image_column", "image") is not None}
    with open_dict(config):
        config.data = None  # no file of it is needed
        if config.precision == "auto":
            config.precision = "bf16_critics"
        config.training.accumulation = min(2, settings.accumulation)
        config.training.batch_size = micro_batch * config.training.accumulation
        config.training.total_images = 2**40
        config.fake_score.steps = min(1, config.fake_score.steps)
        config.diagnosis.held_out = config.diagnosis.samples = 0
    for key, unpredicted, remedy in _UNPREDICTED:
        if config[key] in unpredicted:
            raise ValueError(f"{key}={str(config[key]).lower()} is not predicted: {remedy}")
    check_config(config)
    with open_dict(config):
        config.data = data
    return config


def stand_ins(config: DictConfig, teacher: Any) -> dict[str, Any]:
    """The ``teacher``, without its pipeline, and its zeros: the given parts of a :func:`planned` configuration."""
    if getattr(teacher, "condition_keys", ()):
        teacher.pipeline = ZeroPipeline(condition_shapes(teacher))
    data = None if config.data is None else Zeros(teacher, config.data.images)
    return {"teacher": teacher, "data": data}


class Outline(Subject):
    """A preset of ``onestep train`` whose networks, optimisers and averages are fake.

    A teacher of diffusers is built from its configs alone; another one is read once, and its numbers are dropped.

    Args:
        overrides: of ``onestep train``.

    Attributes:
        mode: the mode of the fake tensors.
    """

    def __init__(self, overrides: Sequence[str]) -> None:
        config = planned(overrides)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        teacher = _outline_of_teacher(config.teacher)
        given = stand_ins(config, teacher)
        weight, pairs = config.generator.regression_weight, config.pairs
        config.generator.regression_weight, config.pairs = 0.0, None  # they are generated by the teacher
        dropped: dict[Tensor, Tensor] = {}
        if isinstance(teacher, DenoiserNetwork):
            drop_numbers(teacher, self.mode, dropped)
            teacher.set_guidance(config.teacher.get("guidance", 1.0))  # with the embeddings of no prompt
        with _replaced_in_conversions():
            self.build(config, given)
        if pairs is not None:
            self._pair(weight)
        for module in self.modules:
            drop_numbers(module, self.mode, dropped)
        for guarded in self.parts.optimizers.values():
            for optimizer in guarded.optimizers.values():
                for group in optimizer.param_groups:
                    group["params"] = [dropped.get(parameter, parameter) for parameter in group["params"]]
        late = max(config.generator.starts_at, config.generator.gan_starts_at)
        self.iterations = math.ceil(late / self.batch_size)

    @property
    def modules(self) -> list[nn.Module]:
        """The modules of the training: the networks and the averages."""
        return [*self.networks.values(), self.parts.student, *self.parts.averages.networks.values()]

    def _pair(self, weight: float) -> None:
        """Add pairs of the size of a batch, and the regression with this ``weight``."""
        parts = self.parts
        noise = torch.zeros(self.batch_size, *parts.student.noise_shape)
        pairs = noise, self.data[0][1], torch.zeros(self.batch_size, *parts.data.image_shape)
        parts.pairs = TeacherPairs(*pairs, self.batch_size, parts.run.seed, parts.run.accelerator)
        parts.generator = replace(parts.generator, regression_weight=weight)


def _outline_of_teacher(node: DictConfig) -> Any:
    if node.get("_target_") != f"{_LOADER}load_diffusers":
        return instantiate(node)
    if node.get("quantize") is not None:
        raise ValueError(
            f"teacher.quantize={node.quantize} is not predicted: set teacher.quantize=null for that of teacher.dtype"
        )
    taken = ("path", "size", "dtype", "revision", "local_files_only", "scheduler")
    described: dict[str, Any] = {"_target_": f"{_LOADER}outline_diffusers", **{name: node[name] for name in taken}}
    return instantiate(OmegaConf.create(described))


def drop_numbers(module: nn.Module, mode: FakeTensorMode, dropped: dict[Tensor, Tensor]) -> None:
    """Replace the parameters of ``module``, and its buffers on the meta device, by fake tensors of the CPU.

    ``dropped`` has those that were replaced before, as modules share some, and gets the new ones.
    """

    def fake(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or isinstance(tensor, FakeTensor) or not (tensor.is_meta or isinstance(tensor, nn.Parameter)):
            return tensor
        if tensor not in dropped:
            with mode:
                empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                is_parameter = isinstance(tensor, nn.Parameter)
                dropped[tensor] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return dropped[tensor]

    for tensors in _tensors(module):
        tensors.update({name: fake(tensor) for name, tensor in tensors.items()})


def _tensors(module: nn.Module) -> Iterator[dict[str, Any]]:
    """The parameters and the buffers of each module in ``module``, by name."""
    for one in module.modules():
        yield from (one._parameters, one._buffers)


@contextmanager
def _replaced_in_conversions() -> Iterator[None]:
    """Context in which a conversion of a module replaces its fake parameters.

    torch exchanges their contents instead, which fails: fake tensors have weak references. A parameter that the
    conversion does not change stays the same, as one that networks share.
    """
    original = nn.Module._apply

    def apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        if not any(isinstance(parameter, FakeTensor) for parameter in module.parameters()):
            return original(module, function, recurse)
        for tensors in _tensors(module):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                with torch.no_grad():
                    converted = function(tensor)
                if converted is not tensor:
                    is_parameter = isinstance(tensor, nn.Parameter)
                    tensors[name] = nn.Parameter(converted, tensor.requires_grad) if is_parameter else converted
        return module

    nn.Module._apply = apply  # type: ignore[method-assign]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor", UserWarning)  # by deepcopy
            yield
    finally:
        nn.Module._apply = original  # type: ignore[method-assign]
