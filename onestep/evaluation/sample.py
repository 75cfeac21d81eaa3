"""Samples of a generator or a teacher: generated, written, and measured."""

import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from onestep.evaluation.evaluate import evaluate, least_of, open_samples, print_results
from onestep.evaluation.generate import Draw, SampleSpace, draw_share
from onestep.evaluation.writing import SampleWriter
from onestep.metrics.evaluator import Evaluator
from onestep.processes import gather_rows, process_rows, rank_and_count

#: The folders of a run's generators, by the name of their weights.
WEIGHTS = {"ema": "generator", "raw": "generator_raw"}


def write_samples(
    draw: Draw,
    network_evaluations: int,
    space: SampleSpace,
    seeds: range,
    batch_size: int,
    accelerator: Accelerator,
    folder: Path,
    format: str,
    evaluator: Evaluator | None = None,
    seed_ranges: int = 1,
) -> dict[str, Any]:
    """Generate the images of ``seeds``, write them into ``folder``, and measure them if there is an ``evaluator``.

    Args:
        draw: the generator, or a sampler of a teacher.
        network_evaluations: evaluations of the network a sample.
        space: see :class:`SampleSpace`.
        seeds: image ``i`` depends on ``seeds[i]`` alone.
        batch_size: images at a time.
        accelerator: gives device, precision and processes.
        folder, format: see :class:`SampleWriter`.
        evaluator: the metrics; None for none.
        seed_ranges: disjoint ranges of as many seeds to measure, this first.

    Returns:
        Where the images lie, how many, network evaluations an image, images a second, generated and written, and the
        metrics.

    Raises:
        ValueError: for fewer samples than processes, or than a metric's name promises.
    """
    if evaluator is not None:
        evaluator.check_samples(len(seeds))  # before anything is generated
    main, device = accelerator.is_main_process, accelerator.device
    if len(seeds) < accelerator.num_processes:
        raise ValueError(f"count={len(seeds)}: {accelerator.num_processes} processes have not one sample each")

    def generate(seeds: range) -> Any:
        return draw_share(draw, seeds, batch_size, space, accelerator, "drawing" if main else None)

    started = time.monotonic()
    writer = SampleWriter(folder, format, space.noise_shape)
    images = torch.cat(list(writer.write(generate(seeds), [seeds[place] for place in process_rows(len(seeds))])))
    writer.wait()
    place = _finish(writer, images, seeds, device)
    accelerator.wait_for_everyone()
    seconds = time.monotonic() - started
    result: dict[str, Any] = {
        "images": str(place) if main else None,
        "count": len(seeds),
        "network_evaluations": network_evaluations,
        "samples_per_second": float(f"{len(seeds) / seconds:.4g}"),
    }
    if evaluator is not None:
        ranges, count = [evaluate(evaluator, images, seeds, network_evaluations, space.prompts)], len(seeds)
        for _ in range(1, seed_ranges):
            seeds = range(seeds.stop, seeds.stop + count)
            images = torch.cat(list(generate(seeds)))
            ranges.append(evaluate(evaluator, images, seeds, network_evaluations, space.prompts))
        result |= _with_results(ranges) if main else {}
    return result


def evaluate_files(path: str, evaluator: Evaluator) -> dict[str, Any]:
    """Measure the samples at ``path``, see :func:`onestep.evaluation.evaluate.open_samples`."""
    files = open_samples(path)
    evaluator.check_samples(files.count)
    records = evaluator.results(evaluator(files.batches()), files.count, files.seeds, None)
    return {"images": path, "count": files.count} | _with_results([records])


def _finish(writer: SampleWriter, images: Tensor, seeds: range, device: torch.device) -> Path | None:
    """Have the first process write the file of all samples; ``images`` are this process's."""
    every_image = gather_rows(images, device) if writer.format != "png" else images
    return writer.finish(every_image, seeds) if rank_and_count()[0] == 0 else None


def _with_results(ranges: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """The values of the first range of seeds by name, the least of several, and the records of all."""
    least = least_of(ranges) if len(ranges) > 1 else []
    records = [record for records in ranges for record in records]
    print_results(records + least)
    return {record["name"]: record["value"] for record in ranges[0] + least} | {"results": records + least}
