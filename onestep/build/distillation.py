"""The parts of a distillation, built and checked from its configuration."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from onestep.build.checks import (
    check_augmentation,
    check_data,
    check_fit,
    check_noise_of_pairs,
    check_teacher,
    check_term_fit,
    check_terms,
    level_of,
)  # fmt: skip
from onestep.build.evaluation import build_evaluator, sample_space, training_space
from onestep.build.image_conditions import (
    check_ground_truth,
    check_image_conditions,
    check_takes_image,
    ignore_conditions,
)  # fmt: skip
from onestep.build.networks import build_discriminator, build_generator, build_pretrained, build_view, initial_student
from onestep.build.run import build_clips, build_layout, build_rules, build_run, started_run
from onestep.build.students import build_student, build_views, check_alignment, data_of_scene
from onestep.build.use import check_use, check_use_in_distillation
from onestep.config import instantiate
from onestep.data.augmentation import EDMAugmentation
from onestep.data.dataset import NoData, TrainingDataset, hold_out
from onestep.data.map_style import MapDataset
from onestep.distillation import loop
from onestep.distillation.method import Method
from onestep.distillation.pairs import PairSettings, prepare_pairs
from onestep.distillation.parts import Distillation
from onestep.distillation.schedule import SCHEDULES
from onestep.distillation.settings import CriticSettings, DiagnosisSettings, GeneratorSettings
from onestep.engine.averages import Averages
from onestep.engine.clipping import Clipping
from onestep.engine.optimizer import GuardedOptimizer
from onestep.engine.prepare import prepare_networks
from onestep.engine.run import Run
from onestep.engine.settings import EvaluationSettings, TrainingSettings
from onestep.evaluation.of_run import check_evaluation
from onestep.models.base import DenoiserNetwork
from onestep.models.diffusers.attention import check_attention, set_attention
from onestep.models.dropout import set_dropout
from onestep.models.freezing import freeze
from onestep.models.scene.coloured import ColouredScene
from onestep.models.scene.generator import AnyScene
from onestep.noise import SigmaDistribution
from onestep.objectives.base import Objective
from onestep.objectives.gradient_penalty import GradientPenalty
from onestep.objectives.terms import GeneratorTerm
from onestep.precision import float64_device
from onestep.samplers import Sampler
from onestep.seeding import seeded_rng


def distill(config: DictConfig, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Build and run the distillation of a configuration, see :func:`build_distillation` and :func:`loop.distill`."""
    with started_run(config) as run:
        return loop.distill(build_distillation(config, given, run))


def build_distillation(
    config: DictConfig, given: Mapping[str, Any] | None = None, run: Run | None = None
) -> Distillation:
    """Build all parts on the run's device, with networks initialised from the run's seed.

    This generates the pairs that the cache lacks, which can take longer than everything else.

    Args:
        config: configuration of ``onestep train``.
        given: objects that replace the parts of ``config`` under their keys.
        run: the started run; None for parts that are not trained, with a run that writes nothing.

    Raises:
        ValueError: for parts that do not fit each other.
    """
    parts = Parts(config, given or {})
    settings: TrainingSettings = instantiate(config.training)
    run = run or build_run(config)
    accelerator, device = run.accelerator, run.device
    settings.per_process(accelerator.num_processes)
    rules, clips = build_rules(config), build_clips(config)
    objective: Objective = parts["objective"]
    check_attention(config.attention, device)
    source = parts["data"]  # before the teacher, so that the text encoders encode the empty prompt with the others
    teacher = check_teacher(parts["teacher"]).to(device).eval().requires_grad_(False)
    generator_settings, critics = build_settings(config, teacher)
    terms: dict[str, GeneratorTerm] = parts["terms"]
    check_terms(config, generator_settings, objective, parts["divergence"], terms)
    view = build_view(config, teacher, objective)
    data = _training_data(source, teacher)
    check_fit(teacher, data)
    check_data(config, data, teacher)
    with_image = check_image_conditions(config, data, teacher)
    ignore_conditions(teacher, data)
    check_ground_truth(terms, teacher, with_image)
    for network in (network for term in terms.values() for network in term.networks.values()):
        network.to(device)
    check_use(config)
    check_use_in_distillation(config, objective, data, parts.given)
    if isinstance(teacher, DenoiserNetwork):
        # Encodes the empty prompt on the device, for guidance by text without an unconditional condition.
        teacher.set_guidance(teacher.guidance, teacher.unconditional, teacher.guidance_rule)

    sigma = parts.sigma("sigma", teacher)
    # The seed precedes all initialisations: every process gets the same weights.
    torch.manual_seed(seeded_rng(config.seed).initial_seed())
    student: Any = build_student(config, parts.given, teacher)
    if student is None:
        student = build_generator(config, generator_settings, teacher, data)
        if with_image and generator_settings.start == "noise":
            remedy = ", for which generator.network=... describes a network, or use such a teacher"
            check_takes_image(student.denoiser, "generator.network", remedy)
    if isinstance(student, AnyScene | ColouredScene):
        data = data_of_scene(config, student, objective, data)
    student.to(device)
    freeze(student.networks, generator_settings.frozen, "generator.frozen")
    check_noise_of_pairs(config, teacher, student)
    check_term_fit(terms, student, teacher, sigma)
    fake_score = discriminator = pretrained = normalizer = None
    if objective.needs_fake_score:
        fake_score = initial_student(config, "fake_score", generator_settings.sigma_init, teacher, data).to(device)
        fake_score.set_guidance(critics.guidance, fake_score.unconditional, critics.guidance_rule)
    set_attention(config.attention, filter(None, [teacher, *student.networks, fake_score]))
    set_dropout(student.networks, generator_settings.dropout, "generator.dropout")
    if fake_score is not None:
        set_dropout([fake_score], critics.dropout, "fake_score.dropout")
        check_alignment(critics.alignment, student, fake_score)
    augment: EDMAugmentation | None = instantiate(config.get("augment"))
    if objective.needs_ratio or generator_settings.gan_weight > 0:
        pretrained = build_pretrained(config, teacher)
        discriminator = build_discriminator(config, teacher, fake_score, pretrained, with_image).to(device)
        make_normalizer = instantiate(config.normalizer)
        normalizer = make_normalizer(sigma).to(float64_device(device)) if make_normalizer is not None else None
    penalty: GradientPenalty | None = instantiate(config.get("penalty"))
    sees = getattr(discriminator, "features_from", "") == "teacher" or getattr(penalty, "matches_scores", False)
    check_augmentation(config, augment, fake_score, teacher if sees else None)
    diagnosis = DiagnosisSettings(**config.diagnosis)
    if discriminator is not None and isinstance(data, TrainingDataset):
        data = hold_out(data, diagnosis.held_out, config.seed)

    sampler: Sampler = parts["sampler"]
    metrics = parts["metrics"]
    features = parts["features"] if metrics or isinstance(student, AnyScene) else None
    evaluator = build_evaluator(config, metrics, features, data, device)
    evaluation: EvaluationSettings = instantiate(config.evaluation)
    check_evaluation(evaluator, evaluation, accelerator.num_processes, rules)
    averages = Averages(student, rules)
    # After all checks, and before the networks are sharded: each process generates its pairs alone.
    pairs: PairSettings | None = instantiate(config.get("pairs"))
    layout, space = build_layout(config, teacher), sample_space(teacher, data)
    teacher_pairs = None
    if pairs is not None:
        conditions = "" if space.conditions is None or isinstance(data, NoData) else data.fingerprint()
        teacher_pairs = prepare_pairs(
            pairs,
            teacher,
            sampler,
            accelerator,
            settings.batch_size,
            config.seed,
            training_space(space, data),
            conditions,
        )
    trained = [*student.networks, *([] if fake_score is None else [fake_score])]
    averaged = [network for average in averages.networks.values() for network in average.networks]
    prepare_networks(layout, device, trained, others=[teacher, *averaged])
    return Distillation(
        run=run,
        settings=settings,
        generator=generator_settings,
        critics=critics,
        updates=SCHEDULES[config.schedule](critics.steps if fake_score or discriminator else 0),
        method=Method(
            teacher=teacher,
            objective=objective,
            fake_score=fake_score,
            discriminator=discriminator,
            pretrained=None if pretrained is None else pretrained.to(device),
            normalizer=normalizer,
            penalty=penalty,
            gan_weighting=generator_settings.gan_weighting,
            view=view,
            discriminator_weight=critics.discriminator_weight,
            discriminator_weighting=critics.discriminator_weighting,
            error_weight=critics.error_weight,
            error_sum=critics.error_sum,
            guided=not any(term.adds_guidance for term in terms.values()),
        ),
        student=student,
        averages=averages,
        optimizers=build_optimizers(config, settings, clips, student, fake_score, discriminator),
        sigma=sigma,
        fake_sigma=parts.sigma("fake_sigma", teacher),
        data=data,
        augment=augment,
        space=space,
        pairs=teacher_pairs,
        terms=terms,
        sampler=sampler,
        evaluator=evaluator,
        evaluation=evaluation,
        diagnosis=diagnosis,
        views=build_views(student, data, features, partial(sampler, teacher), space.decode),
    )


def _training_data(source: Any, teacher: Any) -> TrainingDataset | NoData:
    """The training data of ``source``: a package dataset, any other map-style dataset, or None for no data."""
    if source is None:
        return NoData(teacher.image_shape, teacher.label_dim)
    return source if isinstance(source, TrainingDataset) else MapDataset(source, teacher.label_dim)


class Parts:
    """The parts of a run by key: the given objects, and parts that each access builds from the configuration."""

    def __init__(self, config: DictConfig, given: Mapping[str, Any]) -> None:
        self.config, self.given = config, given

    def __getitem__(self, name: str) -> Any:
        if name in self.given:
            return self.given[name]
        node = self.config.get(name)
        inner = {key: part for key, part in self.given.items() if OmegaConf.is_dict(node) and key in node}
        return instantiate(node, **inner)

    def sigma(self, name: str, teacher: Any) -> SigmaDistribution:
        """A distribution of noise levels; the ``teacher``'s levels replace bounds of null."""
        if name in self.given:
            return self.given[name]
        bounds = {
            key: level_of(teacher, key, f"{name}.{key}")
            for key in ("sigma_min", "sigma_max")
            if self.config[name].get(key, 0) is None
        }
        return instantiate(self.config[name], **bounds)


def build_settings(config: DictConfig, teacher: Any) -> tuple[GeneratorSettings, CriticSettings]:
    """The numbers of the blocks ``generator``, ``fake_score`` and ``discriminator``.

    A ``generator.sigma_init`` of null is the teacher's ``sigma_max``.
    """
    generator: dict[str, Any] = OmegaConf.to_container(config.generator, resolve=True)  # type: ignore[assignment]
    if generator["sigma_init"] is None:
        generator["sigma_init"] = level_of(teacher, "sigma_max", "generator.sigma_init")
    fake_score: dict[str, Any] = OmegaConf.to_container(config.fake_score, resolve=True)  # type: ignore[assignment]
    for name in ("network", "init"):  # of their networks
        del generator[name], fake_score[name]
    return (
        GeneratorSettings(**generator),
        CriticSettings(
            **fake_score,
            discriminator_weight=config.discriminator.weight,
            discriminator_weighting=config.discriminator.weighting,
            real_noise=config.discriminator.real_noise,
            generated_noise=config.discriminator.generated_noise,
        ),
    )


def build_optimizers(
    config: DictConfig,
    settings: TrainingSettings,
    clips: Mapping[str, Clipping | None],
    student: nn.Module,
    fake_score: nn.Module | None,
    discriminator: nn.Module | None,
) -> dict[str, GuardedOptimizer]:
    """The generator's optimiser, and one for all critics, because one backward pass computes their gradients."""
    critics = {"fake_score": fake_score, "discriminator": discriminator}
    with_weights = {name: critic for name, critic in critics.items() if critic is not None and _trained(critic)}
    groups = {"generator": {"generator": student}, "critics": with_weights}
    fp16 = config.precision == "fp16"
    return {
        title: GuardedOptimizer(
            {name: instantiate(config.optimizer[name])(_trained(network)) for name, network in group.items()},
            settings,
            clips[title],
            fp16,
            group.values(),
        )
        for title, group in groups.items()
        if group
    }


def _trained(network: nn.Module) -> list[nn.Parameter]:
    """All parameters but the frozen ones of a student."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
