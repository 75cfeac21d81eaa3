"""The environment of every test."""

import gc
import os
import tempfile

# Passing over the objects of torch and diffusers again and again takes a quarter of their import's time.
gc.set_threshold(50_000)

import torch  # noqa: E402

# The networks of the tests are too small to share among threads, which wait for each other; nor do subprocesses.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# What is cached is read by no other run.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="onestep_tests_")

pytest_plugins = [
    f"tests.fixtures.{name}" for name in ("configurations", "datasets", "feature_networks", "pipelines", "runs")
]
