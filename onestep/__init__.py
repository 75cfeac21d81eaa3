"""Distillation of diffusion models into one-step generators; see the README."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onestep.api import Distilled, distill
    from onestep.distillation.method import Method
    from onestep.export.pipeline import OneStepPipeline
    from onestep.models.base import DenoiserNetwork
    from onestep.models.generator import Generator
    from onestep.models.loading import load_generator, load_teacher
    from onestep.models.scene.coloured import ColouredScene
    from onestep.models.scene.generator import SceneGenerator
    from onestep.models.scene.scene import Scene
    from onestep.models.student import Student

__version__ = "0.1.0"

# Imported at the first access: torch and diffusers take seconds, and ``onestep --help`` needs neither.
_MODULES = {
    "ColouredScene": "models.scene.coloured",
    "DenoiserNetwork": "models.base",
    "Distilled": "api",
    "Generator": "models.generator",
    "Method": "distillation.method",
    "OneStepPipeline": "export.pipeline",
    "Scene": "models.scene.scene",
    "SceneGenerator": "models.scene.generator",
    "Student": "models.student",
    "distill": "api",
    "load_generator": "models.loading",
    "load_teacher": "models.loading",
}
__all__ = [
    "ColouredScene", "DenoiserNetwork", "Distilled", "Generator", "Method", "OneStepPipeline", "Scene",
    "SceneGenerator", "Student",
    "distill", "load_generator", "load_teacher",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
