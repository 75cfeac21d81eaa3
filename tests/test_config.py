"""Every file under conf/ composes, passes the checks, and its objects can be built."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from onestep.config import CONF, check_config, compose, explain, instantiate
from tests.helpers.configs import configure, refused
from tests.helpers.diffusers_models import build_network
from tests.helpers.paths import REFERENCE
from tests.helpers.tiny_pipelines import build_pipeline
from tests.test_recipes import FOLDERS

#: Hydra's files, and those of the papers' recipes, which test_recipes.py and test_published_settings.py test.
ELSEWHERE = {"hydra", *FOLDERS}
FILES = sorted(
    str(file.relative_to(CONF).with_suffix(""))
    for file in CONF.glob("*/**/*.yaml")
    if not ELSEWHERE & {*file.relative_to(CONF).parts}
)
SID = REFERENCE / "sid_ddpmpp_cond10_16.pkl"
PUBLISHED = [f for f in FILES if f.startswith("experiment/benchmark/")]
METHODS = [f for f in FILES if f.startswith("experiment/method/")]
ON_ZIP = ("teacher=local", f"teacher.path={SID}", "data=edm_zip", "data.path={stores}/images.zip")
GROUPS_OF_SAMPLE = ("teacher", "sampler", "data", "features", "metrics")
TEXT = ("teacher=diffusers", "teacher.path={text}", "teacher.pipeline.cache={cache}")
PROMPTS = ("data.path=[a cat]", "data.image_column=null")
REQUIRED = {
    "experiment/none": ["teacher=digits"],
    "teacher/local": ["teacher.path=digits"],
    "experiment/digits_sr": ["teacher.path=digits"],
    "features/local": ["features.path=digits"],
    "sigma/annealed": ["sigma.sigma_end=1"],
    "experiment/fashion": ["data.path={stores}/idx"],
    "experiment/pretrain/fashion": ["data.path={stores}/idx"],
    "experiment/features/fashion": ["data.path={stores}/idx", "held_out.split=train"],
    "experiment/cifar10_5k": ["teacher.path=digits", "features.path=digits", "data.path={stores}/images.zip"],
    "experiment/pretrain/cifar10_5k": ["features.path=digits", "data.path={stores}/images.zip"],
    "experiment/pretrain/photographs": [
        "data.images.path={stores}/classes",
        "data.evaluation.path={stores}/classes",
        "data.images.size=6",
        "data.evaluation.size=6",
    ],
    "experiment/photographs": [
        "teacher.path=digits",
        "features.path=digits",
        "data.images.path={stores}/classes",
        "data.evaluation.path={stores}/classes",
        "data.images.size=6",
        "data.evaluation.size=6",
    ],
    "experiment/invertible/photographs": [
        "data.path={stores}/classes",
        "data.size=6",
        "held_out.path={stores}/classes",
        "held_out.size=6",
    ],
    "experiment/features/photographs": ["data.path={stores}/classes", "data.size=6"],
    "experiment/features/cifar10_5k": ["data.path={stores}/images.zip", "held_out.path={stores}/images.zip"],
    "experiment/pretrain/emoji": [*PROMPTS, "network.path={text}", "network.pipeline.cache={cache}"],
    "network/diffusers": ["experiment=pretrain/emoji", *PROMPTS, "network.path={text}"],
    "experiment/emoji": [*PROMPTS, "teacher.pipeline.cache={cache}"],
    "teacher/diffusers": ["teacher.path={pipeline}"],
    **{f: [f"teacher.path={SID}"] for f in FILES if f.startswith(("teacher/edm_", "teacher/edm2_"))},
    **{
        f: [
            f"teacher.path={SID}",
            "data.path={stores}/images.zip",
            "features.path={inception}",
            "features.sha256={sha256}",
        ]
        for f in PUBLISHED
    },
    "experiment/benchmark/imagenet512": [
        "teacher=diffusers",
        "teacher.path={text}",
        "data.images.channels=3",
        "data.images.path={stores}/images.zip",
        "features.path={inception}",
        "features.sha256={sha256}",
    ],
    **{f: [*ON_ZIP] for f in METHODS},
    "experiment/method/hf_diff": [*ON_ZIP, "features@terms.embedding_js.network=digits"],
    "experiment/method/rsd": [*ON_ZIP, "features@terms.lpips.network=digits"],
    "experiment/method/osediff": ["teacher=digits", "data=digits", "features@terms.lpips.network=digits"],
    "features/inception": ["features.path={inception}", "features.sha256={sha256}"],
    "features/clean_fid": ["features.path={inception}", "features.sha256={sha256}"],
    "features/dinov2": ["features.path={dinov2}"],
    "features/clip": ["features.path={clip}"],
    "metrics/fd_dinov2": ["metrics.fd_dinov2.features.path={dinov2}"],
    "metrics/clip_score": ["metrics.clip_score.features.path={clip}"],
    "metrics/clip_iqa_vit": ["metrics.clip_iqa_vit.features.path={clip}"],
    **{
        f"{group}{name}": [f"{place}.{key}={{{name}_{key}}}" for key in ("path", "sha256")]
        for name in ("alex", "vgg")
        for group, place in (("features/lpips_", "features"), ("metrics/lpips_", f"metrics.lpips_{name}.network"))
    },
    "terms/lpips": ["terms.lpips.network.path={vgg_path}", "terms.lpips.network.sha256={vgg_sha256}"],
    "terms/perceptual": ["features@terms.perceptual.network=digits"],
    "discriminator/pretrained_features": ["features@discriminator.network=digits"],
    "terms/embedding_js": ["features@terms.embedding_js.network=digits"],
    "data/edm_zip": ["data.path={stores}/images.zip"],
    "data/image_folder": ["data.path={stores}/classes"],
    "data/webdataset": ["data.path={stores}/shards"],
    "data/idx": ["data.path={stores}/idx"],
    "data/fashion_mnist": ["data.path={stores}/idx"],
    "data/hugging_face": ["data.path={stores}/table", "data.label_column=label"],
    **{f"teacher/{name}": ["teacher.path={text}"] for name in ("sd15", "sdxl", "sd3", "flux")},
    "data/latents": ["data.images.path={stores}/classes", "data.images.channels=3", *TEXT],
    "data/prompts": ["data.path=[a cat]", *TEXT],
    "data/view_prompts": ["data.prompt=a cat", *TEXT],
    "data/crops": ["data.path={stores}/classes", "data.size=6"],
    "data/paired": ["data.images.path={stores}/classes", "degradation=area"],
    "data/paired_folders": ["data.high.path={stores}/classes", "data.low.path={stores}/classes"],
    **{
        f"experiment/{file.stem}": [
            "teacher.path={text}",
            "data.path=[a cat]",
            "data.image_column=null",
            "teacher.pipeline.cache={cache}",
        ]
        for file in CONF.glob("experiment/*.yaml")
        if file.stem.startswith(("sd", "flux", "text_to_image"))
    },
    **{
        f"experiment/{file.stem}": [
            "teacher.path={text}",
            "data.prompt=a cat",
            "student.image_shape=[4,8,8]",
            "student.size=4",
            "teacher.pipeline.cache={cache}",
        ]
        for file in CONF.glob("experiment/text_to_3d*.yaml")
    },
    "student/coloured_scene": ["student.image_shape=[4,8,8]", "student.size=4"],
    "student/scene": ["student.classes=[3,7]", "student.views=[[0,0,0],[90,0,0]]"],
    "student/scene_generator": ["student.scene.classes=[3,7]", "student.scene.views=[[0,0,0],[90,0,0]]"],
    "divergence/custom": ["divergence.f=torch.square"],
    **{
        f: ["mixture=grid"]
        for f in ("data/mixture", "teacher/mixture", "metrics/modes", "metrics/mode_precision", "metrics/kl")
    },
}
#: What has been built, by its description.
BUILT: dict[str, Any] = {}


@pytest.fixture(scope="session")
def places(
    tmp_path_factory: pytest.TempPathFactory,
    stores: Path,
    inception_file: Path,
    dinov2_folder: Path,
    clip_folder: Path,
    lpips_files: dict[str, dict[str, object]],
) -> dict[str, object]:
    """Files for the required values."""
    pipeline = tmp_path_factory.mktemp("pipeline")
    text = build_pipeline("sd", tmp_path_factory.mktemp("text") / "sd")
    DDPMPipeline(build_network("unet"), DDPMScheduler()).save_pretrained(pipeline)
    content_hash = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    return {
        "stores": stores,
        "pipeline": pipeline,
        "text": text,
        "cache": tmp_path_factory.mktemp("cache"),
        "inception": inception_file,
        "sha256": content_hash,
        "dinov2": dinov2_folder,
        "clip": clip_folder,
        **{f"{name}_{key}": value for name, given in lpips_files.items() for key, value in given.items()},
    }


def overrides_for(file: str, places: dict[str, object] | None = None) -> list[str]:
    group, choice = file.split("/", 1)
    required = [override.format(**(places or {})) for override in REQUIRED.get(file, [])]
    return [f"{group}=[{choice}]" if group in ("metrics", "terms") else f"{group}={choice}", *required]


def primary_of(file: str) -> str:
    """The primary file for the choice in ``file``."""
    commands = {"pretrain/": "pretrain", "features/": "pretrain_features", "invertible/": "pretrain_invertible"}
    for start, primary in commands.items():
        if file.startswith(f"experiment/{start}"):
            return primary
    return "pretrain" if file.startswith(("augment/", "network/", "training/pretrain")) else "train"


def targets(node: Any) -> Iterator[Any]:
    """The outermost nodes with a ``_target_``."""
    if OmegaConf.is_list(node) or isinstance(node, list):
        for item in node:
            yield from targets(item)
    if OmegaConf.is_dict(node) or isinstance(node, dict):
        if "_target_" in node:
            yield node
        else:
            for value in node.values():
                yield from targets(value)


def assert_builds(config: DictConfig) -> list[str]:
    check_config(config)
    built = []
    for node in targets(config):
        levels = {"sigma_min": 0.1, "sigma_max": 9.0}  # null: the teacher's range
        target = get_object(node["_target_"])
        plain = repr(OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node)
        thing = BUILT.get(plain) or instantiate(
            node, **{name: level for name, level in levels.items() if node.get(name, 0) is None}
        )
        BUILT[plain] = thing
        if node.get("_partial_"):
            assert callable(thing)
        elif isinstance(target, type):
            assert type(thing) is target
        else:
            assert thing is not None
        built.append(node["_target_"])
    return built


@pytest.mark.usefixtures("other_protocols")
@pytest.mark.parametrize("file", FILES)
def test_each_file_builds_what_it_names(file: str, places: dict[str, object]) -> None:
    config = configure(primary_of(file), *overrides_for(file, places), "output=nowhere")
    built = assert_builds(config)
    # Unresolved: its interpolations refer to nodes outside of it.
    content = OmegaConf.to_container(OmegaConf.load(CONF / f"{file}.yaml"))
    assert isinstance(content, dict)
    own = [node["_target_"] for node in targets(content)]
    assert own or "defaults" in content or file.endswith("/none") or file == "discriminator/base"
    assert set(own) <= set(built)


@pytest.mark.usefixtures("other_protocols")
@pytest.mark.parametrize("file", [file for file in FILES if file.split("/")[0] in GROUPS_OF_SAMPLE])
def test_sample_takes_each_of_its_groups(file: str, places: dict[str, object]) -> None:
    overrides = overrides_for(file, places)
    built = assert_builds(configure("sample", *overrides, "save_to=nowhere"))
    others = {"mixture=grid", "teacher=diffusers", "degradation=area"} & {*overrides[1:]}
    assert len(built) == (not file.endswith("/none")) + len(others)


def test_every_default_of_train_is_built() -> None:
    built = assert_builds(configure("train", "output=nowhere"))
    # objective, divergence, weighting, sigma, fake_sigma, normalizer, discriminator, data, teacher, sampler, features,
    # training, evaluation, average, two ways of clipping, three optimisers, two metrics,
    # and the pairs of a training without arguments
    assert len(built) == 22
    assert [built.count(f"torch.optim.{name}") for name in ("Adam", "AdamW")] == [2, 1]


def test_an_objective_of_the_user_has_no_regression() -> None:
    config = configure("train", "divergence=forward_kl")
    assert (config.pairs.count, config.generator.regression_weight, config.averages.ema.halflife) == (4096, 1.0, 12000)
    config = configure("train", "objective=f_distill")
    assert (config.pairs, config.generator.regression_weight, config.averages.ema.halflife) == (None, 0.0, 40000)


def test_pretraining_told_nothing_is_the_digits() -> None:
    config = configure("pretrain", "output=nowhere")
    assert (config.sigma.log_mean, config.network.label_dim, config.training.batch_size) == (-0.8, 10, 256)
    # network, data, sampler, sigma, features, training, evaluation, average, clipping, optimiser, two metrics
    assert len(assert_builds(config)) == 12
    assert configure("pretrain_features", "output=nowhere").classifier.channels == [32, 64, 64]


@pytest.mark.parametrize("primary", ["pretrain", "pretrain_features"])
def test_pretraining_of_other_data_is_never_of_the_digits(primary: str) -> None:
    with pytest.raises(HydraException, match="must specify '(data|evaluation)'"):
        configure(primary, "experiment=null")
    groups = ["features=none", "training=pretrain_digits", "evaluation=digits"] if primary == "pretrain" else []
    config = configure(primary, "experiment=null", "data=digits", *groups, "output=nowhere")
    with pytest.raises(ValueError, match=r"settings without a value: .*\.image_shape"):
        check_config(config)


def test_the_objective_gets_the_chosen_divergence_and_weighting() -> None:
    for objective in ("f_distill", "uni_instruct", "dmd"):
        config = configure("train", f"objective={objective}", "divergence=alpha", "divergence.alpha=0.25",
                                "weighting=unit")  # fmt: skip
        built = instantiate(config.objective)
        assert built.divergence.alpha == 0.25
        assert type(built.weighting).__name__ == "UnitWeighting"


def test_dmd_is_distribution_matching_with_a_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    config = configure("train", "objective=dmd")
    objective = instantiate(config.objective)
    assert (type(objective).__name__, type(objective.divergence).__name__) == ("FDistill", "ReverseKL")
    assert type(objective.weighting).__name__ == "DMDWeighting"
    assert config.discriminator.head is None
    assert config.generator.gan_weight == 0 and config.generator.regression_weight > 0
    assert instantiate(config.pairs).cache == str(Path.home() / ".cache/onestep/pairs")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert instantiate(config.pairs).cache == "/elsewhere/onestep/pairs"


def test_the_command_line_goes_before_a_preset() -> None:
    config = configure(
        "train", "objective=dmd", "discriminator=teacher_features", "divergence=forward_kl", "generator.gan_weight=0.1",
        "pairs.count=10", "output=nowhere",
    )  # fmt: skip
    assert "onestep.models.discriminator.PooledHead" in assert_builds(config)
    assert type(instantiate(config.objective).divergence).__name__ == "ForwardKL"
    assert (config.generator.gan_weight, config.pairs.count) == (0.1, 10)


@pytest.mark.parametrize(
    ("overrides", "left_out"),
    [
        (["optimizer.generator._target_=torch.optim.SGD"], "betas"),
        (["optimizer.generator._target_=torch.optim.AdamW"], ""),
        (["optimizer.generator._target_=torch.optim.RAdam"], "fused"),
        (["optimizer.generator._target_=torch.optim.Adagrad"], "betas"),
        (["optimizer.generator._target_=torch.optim.RMSprop"], "betas fused"),
        (["divergence=alpha", "divergence._target_=onestep.objectives.divergences.ForwardKL"], "alpha"),
        (["data=image_folder", "data._target_=onestep.data.digits.Digits", "data.path=a"], "path num_classes"),
        (["experiment=mixture", "sigma=log_normal"], "sigma_min sigma_max"),  # the recipe's settings
        (["experiment=benchmark/cifar10_cond", "data=digits"], "path"),
        (["experiment=benchmark/cifar10_cond", "data=none", "objective=sid"], "path use_labels"),
    ],
)
def test_the_settings_of_another_part_can_be_left_out(overrides: list[str], left_out: str) -> None:
    overrides = [*overrides, "output=o"]
    if left_out:
        message = refused(configure("train", *overrides))
        removed = re.split("does not take: |leave out its settings: ", message)[1].split()
        assert left_out in " ".join(word.rpartition(".")[2] for word in removed if word[0] == "~")
        overrides += removed
    config = configure("train", *overrides)
    check_config(config)
    instantiate(config.optimizer.generator)([torch.nn.Parameter(torch.ones(1))]).step()


def test_no_pairs_unless_they_are_asked_for() -> None:
    for objective in ("f_distill", "uni_instruct"):
        config = configure("train", f"objective={objective}")
        assert config.pairs is None and config.generator.regression_weight == 0


def test_a_slurm_job_is_warned_in_time_and_comes_back() -> None:
    launcher = compose("train", ["hydra/launcher=slurm"], return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.signal_delay_s, launcher.max_num_timeout) == (300, 100)


def test_slurm_without_submitit_names_the_extra() -> None:
    error = HydraException("In 'hydra/launcher/slurm': Could not find 'hydra/launcher/submitit_slurm'")
    assert explain(error) == "hydra/launcher=slurm needs submitit: pip install 'onestep[slurm]'"
