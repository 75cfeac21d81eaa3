"""How much of the generator's gradient each precision keeps: its cosine to the gradient in float32 on the same batches.

    python benchmarks/precision.py [override ...] [--subject digits] [--objective sid ...] [--iterations 60]

Trains a short run of each objective (seed 0) with checkpoints early, in the middle and late, and differentiates the
generator's loss by its weights at each of them, on the same batches in each precision. --runs keeps the runs' folders;
a run that is there is measured as it is, of any length. The network of Stable Diffusion is tiny and has random weights;
each weight of its fake score is changed by a random fraction, of the size in the column "stage".

A precision is autocast's, with some modules in float32. "precision=bf16" is that of the package; with
precision=bf16_critics, the choice of precision=auto, this gradient is in float32. TF32 is emulated: factors are rounded
to its 11 significant bits. Each cell has the mean of the cosine over the batches, and that of the relative error.
"""

import argparse
import copy
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import Dataset, StackDataset

from onestep.api import compose_objects
from onestep.build.distillation import build_distillation, distill
from onestep.config import check_config, compose
from onestep.data.dataset import TrainingDataset
from onestep.denoiser import Condition, map_condition
from onestep.distillation import method
from onestep.distillation.parts import Distillation
from onestep.engine.checkpoint import iteration_of, list_checkpoints
from onestep.engine.state import TrainingState
from onestep.noise import Noised
from onestep.seeding import BatchRandom

OBJECTIVES = ("f_distill", "dmd2", "sid", "sida", "uni_instruct")
CHANGES = (1e-1, 1e-2, 1e-3)  # relative changes of the weights of Stable Diffusion's fake score
BATCHES = 4


class Precision(NamedTuple):
    """autocast's dtype, None for none, and the modules of (generator, teacher, fake score) in float32."""

    dtype: torch.dtype | None
    modules: Callable[..., list[nn.Module]] = lambda *networks: []
    context: Callable[[], AbstractContextManager[object]] = nullcontext


class TF32(TorchFunctionMode):
    """Rounds the factors of convolutions and matrix products to TF32."""

    functions: ClassVar = {F.conv2d, F.linear, F.scaled_dot_product_attention, torch.bmm, torch.baddbmm, torch.matmul}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in self.functions:
            args = [self.rounded(value) if isinstance(value, Tensor) else value for value in args]
        return function(*args, **(kwargs or {}))

    @staticmethod
    def rounded(x: Tensor) -> Tensor:
        bits = x.detach().contiguous().view(torch.int32)
        nearest = ((bits + 0xFFF + (bits >> 13 & 1)) & ~0x1FFF).view(torch.float32)
        return x + (nearest - x.detach())  # exact, and differentiable


def output_layers(*networks: nn.Module) -> list[nn.Module]:
    """The last normalisation and convolution of each network."""
    ends = ("aux_norm", "aux_conv", "out_norm", "out_conv", "conv_norm_out", "conv_out")
    return [module for network in networks for name, module in network.named_modules() if name.endswith(ends)]


def decoders(*networks: nn.Module) -> list[nn.Module]:
    """The blocks of each network's decoder, with its output layers."""
    found = []
    for network in networks:
        found += [m for name, m in network.named_modules() if name in ("model.dec", "network.up_blocks")]
    return [block for part in found for block in part.children()] + output_layers(*networks)


PRECISIONS = {
    "bf16": Precision(torch.bfloat16),
    "bf16, output layers": Precision(torch.bfloat16, output_layers),
    "bf16, scores' decoders": Precision(torch.bfloat16, lambda generator, *scores: decoders(*scores)),
    "precision=bf16": Precision(torch.bfloat16, lambda generator, *scores: list(scores)),
    "bf16, generator": Precision(torch.bfloat16, lambda generator, *scores: [generator]),
    "fp16": Precision(torch.float16),
    "fp16, scores": Precision(torch.float16, lambda generator, *scores: list(scores)),
    "TF32": Precision(None, context=TF32),
}
FLOAT32 = Precision(None)


class Batch(NamedTuple):
    """Random inputs of a generator's update."""

    latents: Tensor
    condition: Condition
    sigma: Tensor
    noise: Tensor

    def to(self, dtype: torch.dtype) -> "Batch":
        condition = map_condition(lambda tensor: tensor.to(dtype), self.condition)
        return Batch(self.latents.to(dtype), condition, self.sigma.to(dtype), self.noise.to(dtype))


def random_items(count: int = 64) -> Dataset[Any]:
    """Random latents with random embeddings of prompts, for the Stable Diffusion network."""
    random = torch.Generator().manual_seed(0)
    latents: Any = torch.rand(count, 4, 16, 16, generator=random) * 2 - 1
    embeddings: Any = torch.randn(count, 8, 32, generator=random)
    return StackDataset(latents, StackDataset(encoder_hidden_states=embeddings))


def stable_diffusion() -> Any:
    """A tiny network of Stable Diffusion's class with random weights."""
    import diffusers

    from onestep.models.diffusers.denoiser import DiffusersDenoiser

    torch.manual_seed(0)
    network = diffusers.UNet2DConditionModel(
        16, 4, 4, cross_attention_dim=32, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8,
        attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return DiffusersDenoiser.wrap(network.eval(), scheduler)


def runs(subject: str, objective: str, options: argparse.Namespace) -> Iterator[tuple[str, Distillation]]:
    """The parts at each stage of the training, in float32, by the stage's name."""
    if subject == "stable_diffusion":
        teacher = stable_diffusion()
        config, given = compose_objects({
            "teacher": teacher, "data": random_items(), "objective": objective, "sigma": "vp", "sampler": "euler",
            "precision": "no", "output": tempfile.gettempdir(), "training": {"batch_size": 16},
            "generator": {"sigma_init": 14.6146}, "device": options.device,
        })  # fmt: skip
        parts = build_distillation(config, given)
        for change in CHANGES:
            fake_score = copy.deepcopy(parts.method.teacher).requires_grad_(True)
            random = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in fake_score.parameters():
                    parameter.mul_(1 + change * torch.randn(parameter.shape, generator=random).to(parameter.device))
            parts.method.fake_score = fake_score
            yield f"{change:g}", parts
        return
    folder = Path(options.runs) / f"{subject}_{objective}"
    settings = [
        f"experiment={subject}", f"objective={objective}", f"output={folder}", f"device={options.device}",
        "metrics=[]", "evaluation.interim_metrics=null", *options.overrides,
    ]  # fmt: skip
    if not list_checkpoints(folder):
        config = compose("train", settings)
        thirds = max(1, options.iterations // 3)
        config.training.total_images = 3 * thirds * config.training.batch_size
        config.training.warmup_images = min(config.training.warmup_images, config.training.total_images // 10)
        config.training.checkpoint_every, config.training.keep_last = thirds, 3
        config.training.evaluate_every = config.training.total_images
        config.evaluation.evaluate_teacher = False
        check_config(config)
        distill(config)
    parts = build_distillation(compose("train", [*settings, "precision=no"]))
    state = TrainingState(parts.trained_networks, {})
    for checkpoint in list_checkpoints(folder):
        for name in state.networks:
            state.load_network(name, checkpoint)
        yield f"{iteration_of(checkpoint)}", parts


def batches(parts: Distillation) -> list[Batch]:
    """The inputs of BATCHES updates of the generator."""
    size, shape, device = parts.settings.batch_size, parts.student.noise_shape, parts.run.device
    found = []
    for number in range(BATCHES):
        random = BatchRandom(0, number, batch_size=size, rows=slice(None), device=device)
        if isinstance(parts.data, TrainingDataset):
            _, condition = parts.data.__getitems__(range(number * size, (number + 1) * size))
        else:
            condition = parts.data.batch(random)[1]
        condition = map_condition(lambda tensor: tensor.to(device), condition)
        found.append(Batch(random.normal(shape), condition, random.sigma(parts.sigma), random.normal(shape)))
    return found


@contextmanager
def in_float32(modules: Sequence[nn.Module], device: str) -> Iterator[None]:
    """Context in which ``modules`` calculate in float32, also within autocast."""

    def as_float32(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

    def call(forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        with torch.autocast(device, enabled=False):
            named = {name: as_float32(value) for name, value in options.items()}
            return forward(*map(as_float32, inputs), **named)

    modules = list(dict.fromkeys(modules))
    for module in modules:
        module.forward = partial(call, module.forward)
    try:
        yield
    finally:
        for module in modules:
            del module.forward  # the instance's attribute


def gradients(parts: Distillation, inputs: Sequence[Batch], precision: Precision) -> list[Tensor]:
    """The gradient of the generator's loss by its weights in each batch, in float64."""
    device, networks = parts.run.device.type, (parts.student.denoiser, parts.method.teacher, parts.method.fake_score)
    trained = [parameter for parameter in parts.student.parameters() if parameter.requires_grad]
    # As the optimiser of fp16 scales it, for gradients that would underflow.
    scale = 2.0**10 if precision.dtype is torch.float16 else 1.0
    found = []
    for batch in inputs:
        with in_float32(precision.modules(*networks), device), precision.context():
            with torch.autocast(device, precision.dtype, enabled=precision.dtype is not None):
                x_generated = parts.student.simulate([batch.latents], batch.condition)
                noised = Noised(batch.sigma, batch.noise)
                losses = parts.method.generator_losses(x_generated, batch.condition, noised)
            slopes = torch.autograd.grad(losses.total * scale, trained, allow_unused=True)
        found.append(torch.cat([slope.flatten().double().cpu() for slope in slopes if slope is not None]) / scale)
    return found


def compare(found: Sequence[Tensor], reference: Sequence[Tensor]) -> str:
    """The mean cosine and the mean relative error."""
    pairs = list(zip(found, reference, strict=True))
    cosine = statistics.fmean(torch.cosine_similarity(one, other, dim=0).item() for one, other in pairs)
    error = statistics.fmean(((one - other).norm() / other.norm()).item() for one, other in pairs)
    return f"{cosine:.5f} ({error:.2g})"


def in_float64(parts: Distillation) -> Distillation:
    """A copy of the method and the student in float64."""
    twin = copy.copy(parts)
    twin.method, twin.student = copy.deepcopy(parts.method), copy.deepcopy(parts.student).double()
    for network in (twin.method.teacher, twin.method.fake_score, twin.method.discriminator):
        if network is not None:
            network.double()
    return twin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="of the runs, such as data.path=...")
    parser.add_argument("--subject", nargs="+", default=["digits"], choices=("digits", "fashion", "stable_diffusion"))
    parser.add_argument("--objective", nargs="+", default=OBJECTIVES)
    parser.add_argument("--precision", nargs="+", default=list(PRECISIONS)[:5], choices=list(PRECISIONS))
    parser.add_argument("--iterations", type=int, default=60, help="of each run that --runs lacks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", default=None)
    options = parser.parse_args()
    # The modules of a precision alone decide; "precision=bf16" lists those of the package.
    method.without_bf16 = lambda *_: nullcontext()  # type: ignore[attr-defined]
    with ExitStack() as stack:
        options.runs = options.runs or stack.enter_context(tempfile.TemporaryDirectory())
        for subject in options.subject:
            table = Table("objective", "stage", "float32 to float64", *options.precision, title=subject)
            for objective in options.objective:
                for stage, parts in runs(subject, objective, options):
                    inputs = batches(parts)
                    reference = gradients(parts, inputs, FLOAT32)
                    exact = gradients(in_float64(parts), [inputs[0].to(torch.float64)], FLOAT32)
                    cells = [
                        compare(gradients(parts, inputs, PRECISIONS[name]), reference) for name in options.precision
                    ]
                    table.add_row(objective, stage, compare(reference[:1], exact), *cells)
                table.add_section()
            Console(width=200).print(table)


if __name__ == "__main__":
    main()
