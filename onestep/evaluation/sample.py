"""Samples of a generator or a teacher: generated, written and evaluated."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from onestep.engine.averages import RAW, check_names, folder_of
from onestep.engine.records import read_record
from onestep.evaluation.evaluate import check_inputs, evaluate, least_of, open_samples, print_results
from onestep.evaluation.generate import SampleFunction, SampleSpace, check_finite, generate_local
from onestep.evaluation.writing import Format, SampleWriter
from onestep.metrics.evaluator import Evaluator
from onestep.processes import gather_rows, process_rows, rank_and_count
from onestep.reading import one_line


def weights_of(record: Mapping[str, Any]) -> list[str]:
    """The names of the weights that a run saved, given its recorded configuration; the first are the reported ones.

    Raises:
        ValueError: if the record has no averages by name.
    """
    averages = record.get("averages")
    if not isinstance(averages, dict):
        raise ValueError(f"the run's config.yaml has averages={one_line(averages)}: expected a mapping")
    names = [str(name) for name, rule in averages.items() if rule is not None]
    check_names(names)
    return [*names, RAW]


def generator_folder(run: Path, weights: str | None) -> Path:
    """The folder of the generator with the ``weights`` of that name in a finished ``run``; None for the reported ones.

    Raises:
        ValueError: for weights that the run has not.
    """
    if weights is None:
        return run / "generator"
    names = weights_of(read_record(run))
    if weights not in names:
        raise ValueError(f"weights={weights}: {run} has {', '.join(names)}")
    return run / folder_of(names, weights)


def write_samples(
    sample: SampleFunction,
    network_evaluations: int,
    space: SampleSpace,
    seeds: range,
    batch_size: int,
    accelerator: Accelerator,
    folder: Path,
    format: Format,
    evaluator: Evaluator | None = None,
    seed_ranges: int = 1,
) -> dict[str, Any]:
    """Generate the images of ``seeds``, write them into ``folder``, and evaluate them if there is an ``evaluator``.

    Args:
        sample: a generator, or a sampler with its teacher.
        network_evaluations: network evaluations per sample.
        space: inputs and decoder of the samples.
        seeds: image ``i`` depends on ``seeds[i]`` alone.
        batch_size: images per batch.
        accelerator: device, precision and processes.
        folder, format: see :class:`SampleWriter`.
        evaluator: the metrics; None for none.
        seed_ranges: number of disjoint ranges of ``len(seeds)`` seeds to evaluate; ``seeds`` is the first.

    Returns:
        Path of the images, their count, network evaluations per image, images per second (generated and written), and
        the metrics.

    Raises:
        ValueError: for fewer samples than processes, or a number of samples that contradicts a metric's name.
    """
    if evaluator is not None:
        evaluator.check_samples(len(seeds))  # before anything is generated
        check_inputs(evaluator, space)
    main, device = accelerator.is_main_process, accelerator.device
    if len(seeds) < accelerator.num_processes:
        raise ValueError(
            f"count={len(seeds)}: expected at least one sample for each of {accelerator.num_processes} processes"
        )

    def generate(seeds: range) -> Any:
        return generate_local(sample, seeds, batch_size, space, accelerator, "sampling" if main else None)

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
        ranges, count = [evaluate(evaluator, images, seeds, network_evaluations, space)], len(seeds)
        for _ in range(1, seed_ranges):
            seeds = range(seeds.stop, seeds.stop + count)
            images = torch.cat(list(generate(seeds)))
            check_finite(images, [seeds[place] for place in process_rows(count)])
            ranges.append(evaluate(evaluator, images, seeds, network_evaluations, space))
        result |= _with_results(ranges) if main else {}
    return result


def evaluate_files(path: str, evaluator: Evaluator) -> dict[str, Any]:
    """Evaluate the samples at ``path``, see :func:`onestep.evaluation.evaluate.open_samples`."""
    files = open_samples(path)
    evaluator.check_samples(files.count)
    values = evaluator(files.batches(), seeds=files.all_seeds)
    if rank_and_count()[0] > 0:
        return {"images": path, "count": files.count}
    return {"images": path, "count": files.count} | _with_results(
        [evaluator.results(values, files.count, files.seeds, None)]
    )


def _finish(writer: SampleWriter, images: Tensor, seeds: range, device: torch.device) -> Path | None:
    """Write the single file of all samples, in the first process; ``images`` are this process's rows."""
    every_image = gather_rows(images, device) if writer.format != "png" else images
    return writer.finish(every_image, seeds) if rank_and_count()[0] == 0 else None


def _with_results(ranges: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """The values of the first range of seeds by name, the least over several ranges, and all records."""
    least = least_of(ranges) if len(ranges) > 1 else []
    records = [record for records in ranges for record in records]
    print_results(records + least)
    return {record["name"]: record["value"] for record in ranges[0] + least} | {"results": records + least}
