"""Scenes of the tests."""

from onestep.models.scene.scene import Scene

FRONT, SIDE, TOP = (0.0, 0.0, 0.0), (90.0, 0.0, 0.0), (0.0, 90.0, 0.0)
#: Those of the ambigram.
VIEWS = [FRONT, SIDE, (0.0, 90.0, -90.0)]


def scene(**options: object) -> Scene:
    """A scene of 8^3 voxels and two views, whose cameras do not move; with other settings by ``options``."""
    settings: dict[str, object] = {
        "image_shape": [1, 8, 8], "label_dim": 10, "classes": [3, 7], "views": [FRONT, SIDE], "size": 8, "objects": 1,
        "jitter": [0, 0, 0], "shift": 0.0, "distance": None, "oversampling": 2, "depth": 0.5, "randomness": 0.0,
    }  # fmt: skip
    return Scene(**{**settings, **options})  # type: ignore[arg-type]
