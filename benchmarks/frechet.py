"""Time and peak memory of the Frechet distance of 50,000 x 2,048 features, against numpy and scipy in the same run.

    python benchmarks/frechet.py [--samples 50000] [--dimensions 2048] [--threads 2]

Each implementation runs in a separate process. The peak memory is that of the full process, with one batch of float32
features at a time. Both implementations accumulate the sums of the features and of their products in float64, and then
compute the distance to the same reference.
"""

import argparse
import multiprocessing as mp
import resource
import time
from collections.abc import Iterator
from typing import Any

import numpy as np


def features(samples: int, dimensions: int, seed: int, batch: int = 500) -> Iterator[np.ndarray]:
    """Correlated features [<= batch, dimensions], float32."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(100 + seed).normal(size=(dimensions, dimensions)).astype(np.float32)
    mixing /= np.sqrt(dimensions)
    for start in range(0, samples, batch):
        count = min(batch, samples - start)
        yield rng.standard_normal((count, dimensions), dtype=np.float32) @ mixing + 0.4


def by_onestep(sides: list[Any], dimensions: int) -> tuple[float, float, float]:
    import torch

    from onestep.metrics.frechet import frechet_distance
    from onestep.metrics.statistics import FeatureStatistics

    accumulated, moments = 0.0, []
    for side in sides:
        statistics = FeatureStatistics(dimensions)
        for batch in side:
            started = time.perf_counter()
            statistics.update(torch.from_numpy(batch))
            accumulated += time.perf_counter() - started
        moments.append(statistics.moments())
    started = time.perf_counter()
    distance = frechet_distance(*moments)
    return distance, accumulated, time.perf_counter() - started


def by_scipy(sides: list[Any], dimensions: int) -> tuple[float, float, float]:
    from scipy.linalg import sqrtm

    accumulated, moments = 0.0, []
    for side in sides:
        count, total, products = 0, np.zeros(dimensions), np.zeros((dimensions, dimensions))
        for batch in side:
            started = time.perf_counter()
            batch = batch.astype(np.float64)
            count, total, products = count + len(batch), total + batch.sum(0), products + batch.T @ batch
            accumulated += time.perf_counter() - started
        mean = total / count
        moments.append((mean, (products - count * np.outer(mean, mean)) / (count - 1)))
    started = time.perf_counter()
    (mean_p, cov_p), (mean_q, cov_q) = moments
    distance = np.square(mean_p - mean_q).sum() + np.trace(cov_p + cov_q - 2 * sqrtm(cov_p @ cov_q).real)
    return float(distance), accumulated, time.perf_counter() - started


def measure(name: str, samples: int, dimensions: int, threads: int, results: Any) -> None:
    import torch

    torch.set_num_threads(threads)
    sides = [features(samples, dimensions, seed) for seed in (0, 1)]
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"onestep": by_onestep, "numpy and scipy": by_scipy}[name](sides, dimensions)
    results.put((*found, start / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("samples", 50_000), ("dimensions", 2048), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    print(f"{'':16} {'distance':>16} {'accumulate':>11} {'evaluate':>9} {'peak memory':>12} {'of it before':>13}")
    for name in ("onestep", "numpy and scipy"):
        context = mp.get_context("spawn")
        results = context.Queue()
        arguments = (name, options.samples, options.dimensions, options.threads, results)
        process = context.Process(target=measure, args=arguments)
        process.start()
        distance, accumulate, evaluate, before, peak = results.get()
        process.join()
        print(f"{name:16} {distance:16.8f} {accumulate:9.1f} s {evaluate:7.1f} s {peak:8.0f} MiB {before:9.0f} MiB")


if __name__ == "__main__":
    main()
