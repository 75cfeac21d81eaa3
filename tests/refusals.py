"""Error messages of tasks, for tests."""

from collections.abc import Callable
from typing import Any

import pytest
from omegaconf import DictConfig

from onestep.build.distillation import distill
from onestep.config import check_config


def refused(config: DictConfig, task: Callable[[DictConfig], Any] = distill) -> str:
    """The message of ``task``'s error for the configuration."""
    with pytest.raises(ValueError) as caught:
        check_config(config)
        task(config)
    return str(caught.value)
