"""The bundled teacher and feature network; each folder or file is what the experiment of its name writes."""

from pathlib import Path

ASSETS = Path(__file__).parent
