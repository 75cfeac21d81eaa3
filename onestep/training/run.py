"""A run's folder, processes and records: what the distillation and the pretrainings share."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader

from onestep.data.dataset import ImageDataset, PositionSampler, keep_batch
from onestep.denoiser import Condition, map_condition
from onestep.training.draw import Draw, draw_batches
from onestep.training.log import RunLog
from onestep.training.settings import TrainingSettings
from onestep.training.state import TrainingState, find_checkpoint, list_checkpoints

PRECISIONS = ("no", "bf16")


class Run:
    """Starts a run: its accelerator, its folder ``config.output`` and the resolved config in it.

    Raises:
        ValueError: for an unknown precision or a negative number of workers.
    """

    def __init__(self, config: DictConfig) -> None:
        if config.precision not in PRECISIONS:
            raise ValueError(f"precision={config.precision}: choose one of {', '.join(PRECISIONS)}")
        if config.num_workers < 0:
            raise ValueError(f"num_workers={config.num_workers}: expected 0 (read in the main process) or more")
        self.config = config
        self.folder = Path(config.output)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.accelerator = Accelerator(
            mixed_precision=config.precision,
            cpu=config.device == "cpu",
            log_with=list(config.trackers) or None,
            project_dir=self.folder,
        )
        set_seed(config.seed, device_specific=True)
        if self.accelerator.is_main_process:
            (self.folder / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
        if config.trackers:
            self.accelerator.init_trackers("onestep", config={"config": OmegaConf.to_yaml(config, resolve=True)})
        self.log: RunLog

    def start(self, state: TrainingState, settings: TrainingSettings) -> None:
        """Resume ``state`` where ``config.resume`` says, and open the log there.

        Raises:
            ValueError: if there is no such checkpoint, or it does not fit.
        """
        checkpoint = find_checkpoint(self.config.resume, self.folder)
        if checkpoint is None and list_checkpoints(self.folder):
            raise ValueError(
                f"{self.folder} holds the checkpoints of another run: go on with it by resume=auto, or choose another "
                "folder by hydra.run.dir=..."
            )
        if checkpoint is not None:
            state.load(checkpoint)
            self.accelerator.print(f"resumed {checkpoint} at cycle {state.cycle} of {settings.cycles}")
        self.log = RunLog(
            self.accelerator,
            self.folder / "log.jsonl",
            total=settings.cycles,
            start=state.cycle,
            batch_size=settings.batch_size,
            every=settings.log_every,
        )

    def batches(self, data: ImageDataset, settings: TrainingSettings, start: int) -> Iterator[tuple[Tensor, Condition]]:
        """This process's share of the batches from cycle ``start`` on, without end, on its device."""
        accelerator = self.accelerator
        settings.share_of(accelerator.num_processes)
        order = PositionSampler(
            len(data),
            settings.batch_size,
            self.config.seed,
            start,
            accelerator.process_index,
            accelerator.num_processes,
        )
        loader = DataLoader(data, batch_sampler=order, collate_fn=keep_batch, num_workers=self.config.num_workers)
        for images, condition in loader:
            yield images.to(accelerator.device), map_condition(lambda tensor: tensor.to(accelerator.device), condition)

    def draw(self, draw: Draw, count: int, batch_size: int, data: ImageDataset, **options: Any) -> Tensor:
        """Images [count, C, H, W] of the seeds 0 to ``count - 1``, such as ``data`` has; see :func:`draw_batches`."""
        batches = draw_batches(
            draw,
            range(count),
            batch_size,
            data.image_shape,
            data.label_dim,
            self.accelerator,
            condition_of=data.condition_of if data.unconditional is not None else None,
            **options,
        )
        return torch.cat([data.decode(batch) for batch in batches])

    def save(self, state: TrainingState, settings: TrainingSettings) -> None:
        """Write a checkpoint, from the main process."""
        if self.accelerator.is_main_process:
            state.save(self.folder, settings.keep_last)
        self.accelerator.wait_for_everyone()

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write ``values`` into the run's folder."""
        (self.folder / name).write_text(json.dumps(values, indent=2) + "\n")

    def finish(self) -> None:
        """Close the trackers and the process group."""
        self.accelerator.end_training()

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.accelerator.device
