"""The folder of a run: its checkpoints to resume, its configuration and its records."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from onestep.engine.checkpoint import find_checkpoint, list_checkpoints
from onestep.engine.settings import RunSettings
from onestep.files import to_json, write_text


class RunFolder:
    """The folder of the run of ``settings``; the main process reads and writes it for all processes."""

    def __init__(self, settings: RunSettings, accelerator: Accelerator) -> None:
        self.path, self.settings, self.accelerator = settings.output, settings, accelerator

    def checkpoint_to_resume(self) -> Path | None:
        """The checkpoint that ``settings.resume`` names; None for a fresh start.

        Raises:
            ValueError: for a missing checkpoint, or a fresh start in a folder with another run's checkpoints.
        """
        found: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            try:
                found[0] = find_checkpoint(self.settings.resume, self.path)
            except ValueError as error:
                found[1] = str(error)
        broadcast_object_list(found)
        if found[1] is not None:
            raise ValueError(found[1])
        if found[0] is None and list_checkpoints(self.path):
            raise ValueError(
                f"{self.path} holds the checkpoints of another run: continue it with resume=auto, or choose another "
                "folder with hydra.run.dir=..."
            )
        return found[0]

    def write_config(self) -> None:
        """Make the folder and write the configuration into it."""
        self.path.mkdir(parents=True, exist_ok=True)
        if self.accelerator.is_main_process:
            write_text(self.path / "config.yaml", self.settings.record)

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write ``values`` into the folder."""
        write_text(self.path / name, to_json(values, indent=2) + "\n")
