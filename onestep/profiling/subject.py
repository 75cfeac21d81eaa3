"""A preset with the parts and updates of ``onestep train``, for measurements."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate.state import AcceleratorState
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from torch import Tensor, nn

from onestep.build.distillation import build_distillation
from onestep.config import check_config, compose
from onestep.data.dataset import ImagesInMemory, NoData
from onestep.denoiser import map_condition
from onestep.distillation.loop import updates
from onestep.distillation.schedule import batches_per_iteration
from onestep.engine.optimizer import GuardedOptimizer
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.seeding import BatchRandom

#: The networks for measurements, with overrides for their settings and placeholders for their files.
NETWORKS = {
    "ddpmpp": ["experiment=benchmark/cifar10_uncond", "teacher.path=random", "data.path=random"],
    "digits": ["experiment=digits"],
}
CIFAR10 = (3, 32, 32)


def random_teacher(guidance: float) -> EDMDenoiser:
    """EDM's unconditional CIFAR-10 network (arXiv 2206.00364, table 7, DDPM++) with random weights."""
    options = {"model_channels": 128, "channel_mult": [2, 2, 2], "num_blocks": 4, "attn_resolutions": [16]}
    network = EDMDenoiser(CIFAR10, architecture="SongUNet", options=options, preconditioning="vp")
    return network.eval().requires_grad_(False).set_guidance(guidance)


def random_images(count: int = 512) -> ImagesInMemory:
    """Noise in [-1, 1] of CIFAR-10's shape."""
    return ImagesInMemory(torch.rand(count, *CIFAR10, generator=torch.Generator().manual_seed(0)) * 2 - 1)


def compose_preset(network: str, overrides: Sequence[str], batch_size: int) -> DictConfig:
    """The configuration of ``onestep train`` for the ``overrides``, with random images and without evaluation.

    Raises:
        ValueError: if the overrides are not valid.
    """
    settings = [f"training.batch_size={batch_size}", f"training.total_images={1000 * batch_size}", "metrics=[]"]
    config = composed([*NETWORKS[network], *settings, *overrides])
    with open_dict(config):
        if network == "ddpmpp":
            guidance = config.teacher.guidance
            config.teacher = {"_target_": f"{__name__}.random_teacher", "guidance": guidance}
            config.data = {"_target_": f"{__name__}.random_images"}
        if config.pairs is not None:  # one batch: the generation of pairs is not a part of an iteration
            config.pairs.count = config.pairs.batch_size = batch_size
            config.sampler.steps = 2
    check_config(config)
    return config


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration of ``onestep train`` for the ``overrides``, without a folder and features of its own.

    Raises:
        ValueError, HydraException: if the overrides are not valid.
    """
    config = compose("train", overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"], config["given"]
        config.output = tempfile.gettempdir()
        config.features = None
    return config


class Subject:
    """A preset to be measured.

    Args:
        network: one of :data:`NETWORKS`.
        overrides: of ``onestep train``, such as ``objective=sid``.
        batch_size: images per iteration.
    """

    def __init__(self, network: str, overrides: Sequence[str], batch_size: int) -> None:
        self.build(compose_preset(network, overrides, batch_size), {})

    def build(self, config: DictConfig, given: Mapping[str, Any]) -> None:
        """Build the parts of ``config``; ``given`` are objects in place of some, see :func:`build_distillation`."""
        self.batch_size = batch_size = config.training.batch_size
        # accelerate has one precision per process; each subject has its own.
        AcceleratorState._reset_state()
        self.parts = build_distillation(config, given)
        if not self.parts.student.networks:
            raise ValueError(
                f"a {type(self.parts.student).__name__} has no network to be measured: use student=none, or read the "
                "seconds of a run"
            )
        self._precision = dict(AcceleratorState._shared_state)
        self.device, data = self.parts.run.device, self.parts.data
        if isinstance(data, NoData):
            x_real, condition = data.batch(BatchRandom(self.parts.run.seed, batch_size=batch_size, rows=slice(None)))
        else:
            x_real, condition = data.__getitems__(range(batch_size))
        batch = (
            None if x_real is None else x_real.to(self.device),
            map_condition(lambda tensor: tensor.to(self.device), condition),
        )
        self.data = [batch] * batches_per_iteration(self.parts.updates)
        self.iterations = 0

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks of an iteration, by name."""
        method = self.parts.method
        found = {
            "generator": self.parts.student.denoiser,
            "teacher": method.teacher,
            "fake score": method.fake_score,
            "pretrained features": method.pretrained,
            "discriminator": method.discriminator,
        }
        for name, term in self.parts.terms.items():
            found |= {f"{name}'s {setting}": network for setting, network in term.networks.items()}
        return {name: network for name, network in found.items() if network is not None}

    def iteration(self) -> Iterator[dict[str, Tensor]]:
        """The next iteration; see :func:`onestep.distillation.loop.updates`."""
        AcceleratorState._shared_state.clear()
        AcceleratorState._shared_state.update(self._precision)
        random = BatchRandom(
            self.parts.run.seed,
            0,
            self.iterations,
            batch_size=self.batch_size,
            rows=slice(None),
            device=self.device,
        )
        averages, student = self.parts.averages, self.parts.student
        for diagnostics in updates(self.parts, self.iterations, random, self.data):
            averages.after_update(student)
            yield diagnostics
        averages.after_iteration(student, self.iterations * self.batch_size, self.batch_size)
        self.iterations += 1

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Context in which iterations change no state: optimisers do not step, and statistics are restored."""
        optimizers, iterations = self.parts.optimizers, self.iterations
        normalizer = self.parts.method.normalizer
        kept = None if normalizer is None else {name: value.clone() for name, value in normalizer.state_dict().items()}
        for optimizer in optimizers.values():
            optimizer.step = partial(_discard, optimizer)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for optimizer in optimizers.values():
                del optimizer.step  # the instance's attribute
                optimizer.discard()
            self.iterations = iterations
            if normalizer is not None and kept is not None:
                normalizer.load_state_dict(kept)


def _discard(optimizer: GuardedOptimizer, iteration: int) -> dict[str, Tensor]:
    """A replacement for an optimiser's step that only discards the gradients."""
    optimizer.discard()
    return {}
