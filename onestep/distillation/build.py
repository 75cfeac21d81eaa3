"""From the configuration to the parts of a distillation, with every check that can be made before training."""

import copy
from dataclasses import dataclass

import torch
import torch.distributed
from accelerate import Accelerator
from omegaconf import DictConfig
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from onestep.build.evaluation import build_evaluator, reference_of, sample_space
from onestep.config import instantiate
from onestep.data.dataset import NoData, TrainingDataset
from onestep.distillation.checks import check_data, check_fit, check_optimizers, check_steps, check_terms
from onestep.distillation.judges import Judges, Teacher
from onestep.distillation.pairs import PairSettings, TeacherPairs, prepare_pairs
from onestep.engine.ema import EMA
from onestep.engine.optimizer import GuardedOptimizer
from onestep.engine.settings import DistillationSettings, EvaluationSettings, TrainingSettings
from onestep.engine.shard import checkpoint_activations, shard
from onestep.evaluation.evaluate import check_evaluation
from onestep.evaluation.generate import SampleSpace
from onestep.metrics.evaluator import Evaluator
from onestep.models.base import DenoiserNetwork
from onestep.models.diffusers.attention import check_attention, set_attention
from onestep.models.diffusers.lora import LoRA
from onestep.models.discriminator import Discriminator
from onestep.models.generator import Generator
from onestep.models.loading import load_generator
from onestep.noise import SigmaDistribution
from onestep.objectives.base import Objective
from onestep.samplers import Sampler
from onestep.seeding import seeded_rng


@dataclass
class Distillation:
    """Everything that the distillation loop works with."""

    accelerator: Accelerator
    settings: DistillationSettings
    evaluation: EvaluationSettings
    data: TrainingDataset | NoData
    space: SampleSpace
    objective: Objective
    sigma: SigmaDistribution  # where the generator is judged
    fake_sigma: SigmaDistribution  # where the fake score and the discriminator are trained
    generator: Generator
    judges: Judges
    ema: EMA[Generator]
    optimizers: dict[str, GuardedOptimizer]
    sampler: Sampler
    evaluator: Evaluator
    pairs: TeacherPairs | None  # for the regression, if there is one

    @property
    def trained_networks(self) -> dict[str, nn.Module]:
        """The modules that change during training, by name."""
        judges = self.judges
        modules = {
            "generator": self.generator,
            "fake_score": judges.fake_score,
            "discriminator": judges.discriminator,
            "normalizer": judges.normalizer,
        }
        return {name: module for name, module in modules.items() if module is not None}


def build_distillation(config: DictConfig, accelerator: Accelerator) -> Distillation:
    """Build all parts, the networks under the run's seed, each on the accelerator's device.

    Pairs that the cache lacks are drawn here, which can take longer than all the rest.

    Raises:
        ValueError: for parts that do not fit each other, saying which and how to mend it.
    """
    settings: DistillationSettings = instantiate(config.training)
    settings.share_of(accelerator.num_processes)
    objective: Objective = instantiate(config.objective)
    check_terms(config, settings, objective)
    check_optimizers(config.optimizer)
    check_attention(config.attention, accelerator.device)
    data: TrainingDataset | NoData | None = instantiate(config.data)
    teacher: Teacher = instantiate(config.teacher).to(accelerator.device)
    if data is None:
        data = NoData(teacher.image_shape, teacher.label_dim)
    check_fit(teacher, data)
    check_data(config, data, teacher)
    if isinstance(teacher, DenoiserNetwork):
        teacher.set_guidance(teacher.guidance)  # by text, on its device

    sigma: SigmaDistribution = instantiate(config.sigma)
    # Seeded before any network is made; the same weights in every process.
    torch.manual_seed(seeded_rng(config.seed).initial_seed())
    generator = Generator(
        _initial_generator(config, settings, teacher, data), settings.sigma_init, settings.later_sigmas
    ).to(accelerator.device)
    check_steps(generator)
    fake_score = discriminator = normalizer = None
    if objective.needs_fake_score:
        start = _initial_network(config.fake_score, "fake_score", teacher, data)
        fake_score = _trainable(config, "fake_score", start).to(accelerator.device)
        fake_score.set_guidance(settings.fake_score_guidance)
    set_attention(config.attention, filter(None, [teacher, generator.denoiser, fake_score]))
    if objective.needs_ratio or settings.gan_weight > 0:
        discriminator = _build_discriminator(config, teacher, fake_score).to(accelerator.device)
        normalizer = instantiate(config.get("normalizer"))
        normalizer = normalizer(sigma).to(accelerator.device) if normalizer is not None else None

    sampler: Sampler = instantiate(config.sampler)
    evaluator = build_evaluator(config, config.get("features"), reference_of(data), accelerator.device)
    evaluation: EvaluationSettings = instantiate(config.evaluation)
    check_evaluation(evaluator, evaluation, accelerator.num_processes)
    ema = EMA(generator, settings.ema_halflife, settings.ema_rampup)
    # Behind all that may be refused, and before the networks are shared: it is drawn by each process alone.
    pairs = _build_pairs(config, settings, teacher, sampler, accelerator)
    prepare_networks(
        config, accelerator.device, trained=[generator.denoiser, fake_score], others=[teacher, ema.average.denoiser]
    )
    return Distillation(
        accelerator=accelerator,
        settings=settings,
        evaluation=evaluation,
        data=data,
        space=sample_space(teacher, data),
        objective=objective,
        sigma=sigma,
        fake_sigma=instantiate(config.fake_sigma),
        generator=generator,
        judges=Judges(teacher, fake_score, discriminator, normalizer),
        ema=ema,
        optimizers=_build_optimizers(config, settings, generator, fake_score, discriminator),
        sampler=sampler,
        evaluator=evaluator,
        pairs=pairs,
    )


def _initial_generator(
    config: DictConfig, settings: DistillationSettings, teacher: Teacher, data: TrainingDataset | NoData
) -> DenoiserNetwork:
    """The generator's network at the start: that of another generator if the configuration names one."""
    start = config.generator
    if start.init is None:
        return _trainable(config, "generator", _initial_network(start.network, "generator.network", teacher, data))
    if start.network is not None:
        raise ValueError("generator.network and generator.init are two ways to start: give one of them")
    try:
        network = load_generator(start.init, settings.sigma_init).denoiser
        check_fit(network, data, "generator")
    except ValueError as error:
        raise ValueError(f"generator.init={start.init}, training.sigma_init={settings.sigma_init}: {error}") from error
    return _trainable(config, "generator", network)


def _initial_network(
    description: DictConfig | None, name: str, teacher: Teacher, data: TrainingDataset | NoData
) -> DenoiserNetwork:
    """The network of this ``description`` or, where it is null, the teacher."""
    if description is not None:
        network: DenoiserNetwork = instantiate(description)
        check_fit(network, data, name)
        return network
    if not isinstance(teacher, DenoiserNetwork):
        raise ValueError(f"this teacher is no network that could be copied: describe one as {name}=...")
    return teacher


def _trainable(config: DictConfig, name: str, network: DenoiserNetwork) -> DenoiserNetwork:
    """A copy of ``network`` to be trained: as a whole, or by LoRA where ``config.lora`` names it.

    In eval mode, as dropout would make its two uses disagree.
    """
    lora: LoRA | None = instantiate(config.get("lora"))
    if lora is not None and name in lora.students:
        return lora.apply(network).set_guidance(1.0).eval()
    # Trained in float32, whatever the teacher is kept in.
    return copy.deepcopy(network).float().requires_grad_(True).set_guidance(1.0).eval()


def _build_discriminator(config: DictConfig, teacher: Teacher, fake_score: DenoiserNetwork | None) -> Discriminator:
    """The head on the features of its host, which must have some."""
    make = instantiate(config.discriminator)
    host = fake_score if make.keywords.get("features_from") == "fake_score" else teacher
    if host is None:
        raise ValueError("this objective trains no fake score to share an encoder: use discriminator=teacher_features")
    if not host.feature_channels:
        name, other = ("fake score", "teacher") if host is fake_score else ("teacher", "fake score")
        raise ValueError(f"the {name} has no features for a discriminator to read: read the {other}'s")
    return make(host.feature_channels)


def _build_pairs(
    config: DictConfig,
    settings: DistillationSettings,
    teacher: Teacher,
    sampler: Sampler,
    accelerator: Accelerator,
) -> TeacherPairs | None:
    pairs: PairSettings | None = instantiate(config.get("pairs"))
    if pairs is None:
        return None
    return prepare_pairs(pairs, teacher, sampler, accelerator, settings.batch_size, config.seed)


def prepare_networks(
    config: DictConfig, device: torch.device, trained: list[nn.Module | None], others: list[nn.Module | None]
) -> None:
    """Lay out, share, compile and checkpoint the networks as ``config`` says, in place, before their optimisers exist.

    Raises:
        ValueError: for a single process that would share with nobody, or a mode of torch.compile that there is not.
    """
    networks = [network for network in [*trained, *others] if isinstance(network, DenoiserNetwork)]
    if config.channels_last:
        if config.shard:
            raise ValueError("channels_last=true and shard=true: FSDP2 takes contiguous weights alone; choose one")
        for network in networks:
            network.to(memory_format=torch.channels_last)
    if config.gradient_checkpointing:
        for module in filter(None, trained):
            checkpoint_activations(module)
    if config.shard:
        if not torch.distributed.is_initialized():
            raise ValueError("shard=true shares the networks among processes, and there is one: accelerate launch ...")
        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        for network in networks:
            shard(network, mesh)
    if config.compile:
        mode = None if config.compile is True else config.compile
        try:
            for network in networks:
                network.compile(mode=mode)
        except RuntimeError as error:
            raise ValueError(f"compile={mode}: expected true, false or a mode of torch.compile: {error}") from error


def _build_optimizers(
    config: DictConfig, settings: TrainingSettings, generator: nn.Module, *critics: nn.Module | None
) -> dict[str, GuardedOptimizer]:
    """One optimiser for the generator, one for the fake score and the discriminator with a group for each."""
    fp16 = config.precision == "fp16"
    own = instantiate(config.optimizer.generator)(_trained_parameters(generator))
    optimizers = {"generator": GuardedOptimizer(own, settings, fp16, [generator])}
    groups = []
    for name, critic in zip(("fake_score", "discriminator"), critics, strict=True):
        if critic is not None:
            options = {key: value for key, value in config.optimizer[name].items() if not key.startswith("_")}
            groups.append({**instantiate(options), "params": _trained_parameters(critic)})
    if groups:
        theirs = instantiate(config.optimizer.fake_score)(groups)
        optimizers["fake_score"] = GuardedOptimizer(
            theirs, settings, fp16, [critic for critic in critics if critic is not None]
        )
    return optimizers


def _trained_parameters(network: nn.Module) -> list[nn.Parameter]:
    """All but the frozen ones of a LoRA student."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
