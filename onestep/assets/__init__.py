"""The bundled teachers, feature networks and generators; each is what the experiment of its name writes."""

from pathlib import Path

ASSETS = Path(__file__).parent
