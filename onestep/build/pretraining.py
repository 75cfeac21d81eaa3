"""The parts of a pretraining, built and checked from its configuration."""

from dataclasses import fields
from typing import Any

import torch
from omegaconf import DictConfig

from onestep.build.checks import check_augmented, check_conditions, check_fit
from onestep.build.evaluation import build_evaluator, sample_space
from onestep.build.image_conditions import check_image_conditions, check_takes_image
from onestep.build.run import build_clips, build_layout, build_rules, started_run
from onestep.build.use import check_use_in_pretraining
from onestep.config import instantiate
from onestep.data.augmentation import EDMAugmentation
from onestep.data.dataset import ImageDataset, TrainingDataset, contents
from onestep.data.prompts import PromptDataset
from onestep.engine.averages import Averages
from onestep.engine.optimizer import GuardedOptimizer
from onestep.engine.prepare import prepare_networks
from onestep.engine.run import Run
from onestep.engine.settings import EvaluationSettings, TrainingSettings
from onestep.evaluation.of_run import check_evaluation
from onestep.models.base import DenoiserNetwork
from onestep.models.diffusers.quantized import is_quantized
from onestep.pretraining import classifier, denoiser, invertible
from onestep.pretraining.denoiser import Pretraining
from onestep.pretraining.dropout import PromptDropout
from onestep.pretraining.settings import ClassifierSettings, InvertibleSettings
from onestep.seeding import seeded_rng


def pretrain(config: DictConfig) -> dict[str, Any]:
    """Build and run the pretraining of a configuration, see :func:`onestep.pretraining.denoiser.pretrain`."""
    with started_run(config) as run:
        return denoiser.pretrain(build_pretraining(config, run))


def pretrain_invertible(config: DictConfig) -> dict[str, Any]:
    """Build and run the training of :func:`onestep.pretraining.invertible.pretrain_invertible`."""
    settings = InvertibleSettings(**config.invertible_training)
    _check_layout(config)
    with started_run(config) as run:
        data, held_out = instantiate(config.data), instantiate(config.held_out)
        if not isinstance(data, ImageDataset):
            raise ValueError("an invertible network needs images: use data=... other than none or prompts")
        torch.manual_seed(config.seed)  # for the initialisation
        network = instantiate(config.invertible)(data.image_shape[0])
        return invertible.pretrain_invertible(run, network, data, held_out, settings)


def pretrain_features(config: DictConfig) -> dict[str, Any]:
    """Build and run the training of a feature network, see :func:`onestep.pretraining.classifier.pretrain_features`."""
    options = config.features_training
    settings = ClassifierSettings(**{field.name: options[field.name] for field in fields(ClassifierSettings)})
    _check_layout(config)
    with started_run(config) as run:
        data, held_out = instantiate(config.data), instantiate(config.held_out)
        torch.manual_seed(config.seed)  # for the initialisation and the training
        return classifier.pretrain_features(run, instantiate(config.classifier), data, held_out, settings)


def _check_layout(config: DictConfig) -> None:
    """Check that a training of a small network is eager and in float32, the only way that there is."""
    if config.precision == "auto":
        config.precision = "no"  # which is recorded
    switches = ("channels_last", "gradient_checkpointing", "shard", "compile")
    for name, plain in {"precision": "no", **dict.fromkeys(switches, False)}.items():
        if config[name] != plain:
            raise ValueError(
                f"{name}={config[name]}: this training of a small network is in float32 and eager: leave out {name}"
            )


def build_pretraining(config: DictConfig, run: Run) -> Pretraining:
    """Build all parts, with the network initialised from the run's seed.

    Raises:
        ValueError: for parts that do not fit each other.
    """
    settings: TrainingSettings = instantiate(config.training)
    settings.per_process(run.accelerator.num_processes)
    rules, clips = build_rules(config), build_clips(config)
    if not rules:
        raise ValueError("averages={}: a pretraining keeps the first of its averages; use averages=half_life")
    data: TrainingDataset | None = instantiate(config.data)
    if not isinstance(data, TrainingDataset) or not contents(data)[0]:
        raise ValueError(
            "a pretraining needs a dataset of images: use data=... other than none; of data=prompts, set "
            "data.image_column=..."
        )
    check_use_in_pretraining(config, data)
    torch.manual_seed(seeded_rng(config.seed).initial_seed())
    network: DenoiserNetwork = instantiate(config.network)
    if is_quantized(network):
        raise ValueError("network.quantize: a pretraining trains all weights: set network.quantize=null")
    network = network.to(run.device).requires_grad_(True).train()
    check_fit(network, data)
    check_conditions(data, network, "network")
    if check_image_conditions(config, data):
        check_takes_image(network, "network", "")
    augment: EDMAugmentation | None = instantiate(config.get("augment"))
    if augment is not None:
        check_augmented(augment, network, "network.options.", f"set network.options.augment_dim={augment.label_dim}")
    averages = Averages(network, rules)
    prepare_networks(build_layout(config), run.device, trained=[network], others=[*averages.networks.values()])
    optimizer = instantiate(config.optimizer.teacher)(list(network.parameters()))
    fp16 = config.precision == "fp16"
    evaluation: EvaluationSettings = instantiate(config.evaluation)
    metrics = instantiate(config.metrics)
    features = instantiate(config.features) if metrics else None
    evaluator = build_evaluator(config, metrics, features, data, run.device)
    check_evaluation(evaluator, evaluation, run.accelerator.num_processes, rules)
    return Pretraining(
        run=run,
        settings=settings,
        evaluation=evaluation,
        data=data,
        sigma=instantiate(config.sigma),
        network=network,
        averages=averages,
        optimizer=GuardedOptimizer({"network": optimizer}, settings, clips["network"], fp16, [network]),
        sampler=instantiate(config.sampler),
        evaluator=evaluator,
        augment=augment,
        prompt_dropout=_prompt_dropout(config, data, network),
        space=sample_space(network, data),
    )


def _prompt_dropout(config: DictConfig, data: TrainingDataset, network: DenoiserNetwork) -> PromptDropout | None:
    if not isinstance(data, PromptDataset):
        return None
    empty = data.pipeline.unconditional()
    return PromptDropout(config.prompt_dropout, {name: rows.to(network.device) for name, rows in empty.items()})
