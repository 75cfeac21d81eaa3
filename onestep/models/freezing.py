"""Parameters that are not trained: of a trained network by the patterns of their names, or all for a while."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

from torch import nn

_SHOWN = 3  # names in a message


@contextmanager
def frozen(*networks: nn.Module | None) -> Iterator[None]:
    """Context in which no parameter of ``networks`` requires a gradient."""
    parameters = [p for network in networks if network is not None for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def freeze(networks: Sequence[nn.Module], patterns: Sequence[str], setting: str) -> None:
    """Freeze the trained parameters of ``networks`` whose names match one of ``patterns`` (:mod:`fnmatch`).

    Raises:
        ValueError: naming the ``setting``, for a pattern that matches none, or if none is left.
    """
    trained = [
        (name, parameter)
        for network in networks
        for name, parameter in network.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
    ]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name, _ in trained):
            close = sorted([name for name, _ in trained], key=lambda name: -_likeness(name, pattern))[:_SHOWN]
            raise ValueError(
                f"{setting}: {pattern!r} matches no trained parameter; the closest names are {', '.join(close)}"
            )
    for name, parameter in trained:
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if patterns and not any(parameter.requires_grad for _, parameter in trained):
        raise ValueError(f"{setting}=[{', '.join(patterns)}] freezes all parameters: leave some to be trained")


def _likeness(name: str, pattern: str) -> float:
    """How much some of the parts of ``name``, as many as ``pattern`` has, are like it; 1 for equal ones."""
    wanted, parts = pattern.strip("*.").split("."), name.split(".")
    runs = [".".join(parts[start : start + len(wanted)]) for start in range(len(parts))]
    return max(difflib.SequenceMatcher(None, run, ".".join(wanted)).ratio() for run in runs)


def describe_trained(network: nn.Module) -> str:
    """The number of the parameters of ``network`` that are trained, such as ``8,524,931 of 55,733,891 (15.3 %)``."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    count, trained = sum(size for size, _ in counts), sum(size for size, is_trained in counts if is_trained)
    return f"{trained:,} of {count:,} ({100 * trained / count:.1f} %)"
