"""The command ``onestep``. Each command imports the modules that it needs when it runs."""

import difflib
import gc
import importlib
import os
import sys
from collections.abc import Sequence

import onestep
from onestep.engine.signals import interruptible, wants_traceback

#: The commands with their help.
COMMANDS = {
    "train": "distill a diffusion model into a one-step generator",
    "pretrain": "train a denoiser, for a teacher of your own data",
    "pretrain features": "train a feature network, for metrics of your own data",
    "pretrain invertible": "train an invertible network of details, for a term of super-resolution",
    "sample": "generate images with a generator or a teacher, and evaluate them",
    "upscale": "enlarge photographs with a generator of super-resolution",
    "export": "write a generator as a diffusers pipeline, or as ONNX and other files",
    "demo": "make a page on which a generator draws in the browser, and serve it",
    "convert": "convert a checkpoint of EDM's format to safetensors",
    "report": "write the page of a run, finished or not, for a browser",
    "compare": "make a table and a plot of the runs in a folder",
    "profile": "count and measure the cost of an iteration",
}
#: The commands with a Hydra configuration: their primary file in ``conf/``, and the function that takes the
#: configuration. The others are modules of this package with their own argument parsers.
CONFIGURED = {
    "train": ("train", "onestep.build.distillation.distill"),
    "pretrain": ("pretrain", "onestep.build.pretraining.pretrain"),
    "pretrain features": ("pretrain_features", "onestep.build.pretraining.pretrain_features"),
    "pretrain invertible": ("pretrain_invertible", "onestep.build.pretraining.pretrain_invertible"),
    "sample": ("sample", "onestep.build.sampling.sample"),
    "upscale": ("upscale", "onestep.build.upscaling.upscale"),
}
_COMPLETION = ("-sc", "--shell-completion")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; errors of the user are reported in one line, with exit code 1.

    Args:
        arguments: the command and its arguments; None for those of the process.
    """
    gc.set_threshold(50_000)  # else passing over what torch and diffusers import takes a quarter of a command's start
    try:
        with interruptible(wants_traceback()):  # also during the imports
            _main(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has ended, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at the end
        sys.exit(1)


def _main(given: list[str]) -> None:
    if given in ([], ["-h"], ["--help"]):
        print(_usage())
    elif given == ["--version"]:
        print(f"onestep {onestep.__version__}")
    else:
        _start(given)


def _start(given: list[str]) -> None:
    from onestep.entry import explained, run_entry_point

    name, rest = _split(given)
    if rest[:1] and rest[0] in _COMPLETION and rest[1:2] and rest[1].startswith("query="):
        _complete(name.split(), rest[1])
    elif given[0] in _COMPLETION:  # Hydra's completion script is the same for all commands
        run_entry_point(lambda config: None, "sample", given)
    else:
        with explained(wants_traceback()):
            _run(name, given, rest)


def _run(name: str, given: list[str], rest: list[str]) -> None:
    if not name:
        guess = difflib.get_close_matches(given[0], COMMANDS, n=1)
        hint = f"; did you mean {guess[0]!r}?" if guess else "."
        raise ValueError(f"unknown command {given[0]!r}{hint} The commands are: {', '.join(COMMANDS)}")
    if name not in CONFIGURED:
        importlib.import_module(f"{__name__}.{name}").main(rest)
        return
    from hydra.utils import get_method

    from onestep.entry import run_entry_point

    config_name, target = CONFIGURED[name]
    if name == "upscale":
        from onestep.commands.upscale import as_settings

        rest = as_settings(rest)
    run_entry_point(lambda config: get_method(target)(config), config_name, rest)


def _split(words: list[str]) -> tuple[str, list[str]]:
    """The command at the start of ``words``, "" if there is none, and the remaining words."""
    for count in (2, 1):
        if " ".join(words[:count]) in COMMANDS:
            return " ".join(words[:count]), words[count:]
    return "", words


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:{width}}  {line}" for name, line in COMMANDS.items())
    return f"""usage: onestep COMMAND ...

Distill a diffusion model into a one-step generator.

{lines}

onestep COMMAND --help   the choices and settings of a command
onestep --version        the version of the package
eval "$(onestep --shell-completion install=bash)"   completion of commands, choices and settings in bash"""


def _complete(before: list[str], query: str) -> None:
    """Print the completions of the shell's current line; ``before`` is the command of a script, else empty."""
    from hydra.plugins.completion_plugin import CompletionPlugin

    from onestep.entry import complete

    line = CompletionPlugin.strip_python_or_app_name(os.environ["COMP_LINE"])
    words = [*before, *line.split(), *([""] if not line or line[-1].isspace() else [])]
    done, last = words[:-1], words[-1]
    for command in map(str.split, COMMANDS):
        if command[:-1] == done and command[-1].startswith(last):
            print(command[-1])
    name, rest = _split(done)
    if name in CONFIGURED:
        complete(CONFIGURED[name][0], [*rest, last], query)
