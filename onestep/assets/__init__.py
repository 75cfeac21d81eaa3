"""The bundled teachers, feature networks and generators; each is what the experiment of its name writes.

``emoji`` has its images and prompts too, under the licences in its ``LICENSE``. ``lpips.safetensors`` has LPIPS's
weights of channels, with their licence in its metadata.
"""

from pathlib import Path

ASSETS = Path(__file__).parent
