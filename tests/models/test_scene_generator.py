"""Generators of scenes: their solids, their cameras, and their files."""

import json
from pathlib import Path

import pytest
import torch

from onestep.models.scene.generator import SceneGenerator, holds_any_scene, load_any_scene
from onestep.models.scene.scene import Scene
from onestep.seeding import one_hot, seeded_inputs
from tests.helpers.scenes import scene

CONDITION = {"labels": torch.stack([one_hot(3, 10), one_hot(7, 10)])}


def generator(randomness: float = 1.0, **options: object) -> SceneGenerator:
    return SceneGenerator(scene(**options), code=4, widths=[16, 32], randomness=randomness)


def test_without_randomness_all_solids_are_the_scenes() -> None:
    """Before the same cameras: the first five entries of a latent are those of a scene."""
    one = generator(0.0, jitter=[10, 20, 30], shift=0.1)
    latents = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    assert one.noise_shape == (9,)
    assert torch.equal(one(latents, CONDITION), one.scene(latents[:, :6], CONDITION))
    assert not torch.equal(one(latents, CONDITION), one(latents.roll(1, 0), CONDITION))  # the cameras moved


def test_a_code_is_a_solid_and_not_a_camera() -> None:
    one = generator()
    latents = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    turned, other = latents.clone(), latents.clone()
    turned[:, :5] = 0.5
    other[:, 5] += 1.0
    assert torch.equal(one.logits(latents), one.logits(turned)) and one.logits(latents).shape == (2, 8, 8, 8)
    assert ((one.logits(latents) - one.logits(other)).abs().amax((1, 2, 3)) > 0.05).all()
    assert torch.equal(one(latents, CONDITION), one(turned, CONDITION))  # whose range is zero here
    assert not torch.equal(one(latents, CONDITION), one(other, CONDITION))


def test_the_initial_solids_differ_by_the_randomness() -> None:
    torch.manual_seed(0)
    one = SceneGenerator(scene(), code=64, widths=[256, 256], randomness=0.3)
    changes = one.logits(torch.randn(500, 69)) - one.scene.logits
    assert changes.square().mean().sqrt().item() == pytest.approx(0.3, rel=0.05)


def test_drawn_objects_are_the_solids_of_the_seeds() -> None:
    one = generator(jitter=[10, 10, 10])
    drawn = one.draw(3)
    latents, _ = seeded_inputs([0, 1, 2], one.noise_shape, 0)
    assert drawn.logits.shape == (3, 8, 8, 8) and not drawn.logits.requires_grad
    torch.testing.assert_close(drawn.logits, one.logits(latents).detach(), rtol=1e-4, atol=1e-4)
    of_scene = torch.cat([latents[:, :5], torch.tensor([[-2.0], [0.0], [2.0]])], 1)
    condition = {"labels": one_hot(7, 10).expand(3, -1)}
    torch.testing.assert_close(drawn(of_scene, condition), one(latents, condition).detach(), rtol=0, atol=1e-5)


def test_gradients_in_double_precision() -> None:
    one = generator(size=3, image_shape=[1, 2, 2], jitter=[20, 20, 20]).double()
    latents = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    names, values = zip(*one.named_parameters(), strict=True)

    def render(*parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(one, dict(zip(names, parameters, strict=True)), (latents, CONDITION))

    assert torch.autograd.gradcheck(render, values, fast_mode=True)


def test_scenes_that_it_does_not_draw() -> None:
    with pytest.raises(ValueError, match=r"scene.objects=2: expected 1, as the noise draws the solids"):
        generator(objects=2)
    with pytest.raises(ValueError, match=r"classes \[4\] have no view, only \[3, 7\] have"):
        generator()(torch.zeros(1, 9), {"labels": one_hot(4, 10)[None]})
    with pytest.raises(ValueError, match="a scene takes a condition of labels, got none"):
        generator()(torch.zeros(1, 9))


def test_a_folder_of_a_generator(tmp_path: Path) -> None:
    one = generator(jitter=[5, 6, 7], distance=4.0)
    one.save_pretrained(tmp_path)
    loaded = load_any_scene(tmp_path)
    assert isinstance(loaded, SceneGenerator) and not loaded.training and holds_any_scene(tmp_path)
    assert json.dumps(loaded.config) == json.dumps(one.config)
    latents = torch.randn(2, 9)
    assert torch.equal(loaded(latents, CONDITION), one(latents, CONDITION))
    settings = json.loads((tmp_path / "scene_generator.json").read_text())
    for change, message in (
        ({"code": 5}, "network.0.weight"),
        ({"widths": [10**6]}, "widths"),
        ({"scene": settings["scene"] | {"size": 10**6}}, "size"),
        ({"scene": settings["scene"] | {"other": 1}}, "other"),
        ({"scene": [1]}, "scene"),
    ):
        (tmp_path / "scene_generator.json").write_text(json.dumps(settings | change))
        with pytest.raises(ValueError, match=message):
            SceneGenerator.from_pretrained(tmp_path)
    (tmp_path / "scene_generator.json").unlink()
    with pytest.raises(ValueError, match=r"holds no generator of scenes: expected scene_generator\.json"):
        SceneGenerator.from_pretrained(tmp_path)
    assert not holds_any_scene(tmp_path)
    one.scene.save_pretrained(tmp_path)
    assert isinstance(load_any_scene(tmp_path), Scene)
