"""In how wide a cone each view of a scene is legible: what a classifier sees when the camera turns away from it."""

import torch

from onestep.images import to_uint8
from onestep.metrics.classifier import Classifier
from onestep.models.scene.scene import Scene
from onestep.seeding import seeded_inputs

_RENDERS = 20  # of each angle
#: The angles by their place among those of a camera, in degrees.
_SWEEPS = {"azimuth": (0, range(0, 181, 5)), "elevation": (1, range(0, 91, 5))}


@torch.no_grad()
def shares_by_angle(scene: Scene, classifier: Classifier) -> dict[str, dict[str, dict[str, float]]]:
    """The share of renders that are named by the class of a view, whose camera turns in one angle.

    The other angles are those of the view, with the scene's jitter and shift; the one that turns has no jitter.

    Returns:
        ``azimuth`` from 0 to 180 and ``elevation`` from 0 to 90 degrees: shares by class and angle.
    """
    device = scene.logits.device
    classifier = classifier.to(device)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, (place, angles) in _SWEEPS.items():
        turned = torch.tensor([*angles], dtype=torch.float32, device=device).repeat_interleave(_RENDERS)
        found[name] = {}
        for label in scene.classes:
            latents, condition = seeded_inputs(list(range(_RENDERS)), scene.noise_shape, scene.label_dim, [label])
            labels = {"labels": condition["labels"].to(device)}
            degrees, shift, objects = (
                one.repeat(len(angles), *[1] * (one.ndim - 1)) for one in scene.cameras(latents.to(device), labels)
            )
            degrees[:, place] = turned
            named = classifier.classify(to_uint8(scene.render(degrees, shift, objects))).argmax(1) == label
            shares = named.double().view(len(angles), _RENDERS).mean(1).tolist()
            found[name][str(label)] = dict(zip(map(str, angles), shares, strict=True))
    return found
