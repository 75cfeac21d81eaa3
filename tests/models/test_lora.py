"""LoRA students: what they share, what they train, and what they save."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from onestep.models.base import copy_trained
from onestep.models.diffusers.attention import check_attention, set_attention
from onestep.models.diffusers.denoiser import DiffusersDenoiser
from onestep.models.diffusers.lora import LoRA
from onestep.models.edm.denoiser import EDMDenoiser
from onestep.models.generator import load_denoiser
from tests.helpers.diffusers_models import FLOWS, build_denoiser, random_condition

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def lora(**options: Any) -> LoRA:
    usual: dict[str, Any] = {"rank": 2, "alpha": 4.0, "targets": ATTENTION, "students": ["generator"]}
    return LoRA(**(usual | options))


def teacher(name: str = "sd") -> DiffusersDenoiser:
    flow = name in FLOWS
    return build_denoiser(name, (diffusers.FlowMatchEulerDiscreteScheduler if flow else diffusers.DDIMScheduler)())


def inputs(denoiser: DiffusersDenoiser) -> tuple[Any, ...]:
    x = torch.randn(2, *denoiser.image_shape, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([0.5, 2.0]), random_condition(denoiser, 2)


def perturb(student: DiffusersDenoiser) -> None:
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("name", ["unet", "dit", "sd", "sdxl", "sd3", "flux"])
def test_a_student_starts_as_its_teacher_and_shares_its_weights(name: str) -> None:
    base = teacher(name)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    student = lora().apply(base)
    with torch.no_grad():
        assert torch.equal(student(*inputs(base)), base(*inputs(base)))
        perturb(student)
        assert (student(*inputs(base)) - base(*inputs(base))).abs().max() > 1e-3
    torch.testing.assert_close(base.state_dict(), before, rtol=0, atol=0)
    own, shared = {id(p) for p in base.parameters()}, {id(p) for p in student.parameters() if not p.requires_grad}
    assert shared == own
    trained = [key for key, p in student.named_parameters() if p.requires_grad]
    assert trained and all(".lora_A." in key or ".lora_B." in key for key in trained)


def test_the_change_is_alpha_over_rank_times_the_product() -> None:
    base = teacher()
    student = lora(targets=["down_blocks.0.attentions.0.proj_in"]).apply(base)
    perturb(student)
    layer = student.network.down_blocks[0].attentions[0].proj_in
    (a,), (b,) = (list(part.values()) for part in (layer.lora_A, layer.lora_B))
    merged = teacher()
    weight = merged.network.down_blocks[0].attentions[0].proj_in.weight
    with torch.no_grad():
        weight += 4.0 / 2 * (b.weight.flatten(1) @ a.weight.flatten(1)).view_as(weight)
        torch.testing.assert_close(student(*inputs(base)), merged(*inputs(base)), rtol=1e-5, atol=1e-5)


def test_the_change_of_half_precision_weights_is_in_single() -> None:
    student = lora().apply(teacher().to(torch.bfloat16))
    dtypes = {p.requires_grad: p.dtype for p in student.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    prediction = student(*inputs(student))
    assert prediction.dtype == torch.float32
    prediction.square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in student.parameters() if p.requires_grad)


def test_a_copy_has_a_change_of_its_own() -> None:
    student = lora().apply(teacher())
    copied = copy_trained(student)
    perturb(copied)
    for ours, theirs in zip(student.parameters(), copied.parameters(), strict=True):
        assert (ours is theirs) == (not ours.requires_grad)
        assert not ours.requires_grad or not torch.equal(ours, theirs)


@torch.no_grad()
def test_a_saved_student_comes_back(tmp_path: Path) -> None:
    student = lora().apply(teacher())
    perturb(student)
    student.save_pretrained(tmp_path)
    loaded = load_denoiser(tmp_path)
    torch.testing.assert_close(loaded.state_dict(), student.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(loaded(*inputs(student)), student(*inputs(student)), rtol=1e-6, atol=1e-6)
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in student.parameters()]


def test_networks_and_layers_that_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match=r"lora\.targets=\['to_x'\]: .*to_x.* not found"):
        lora(targets=["to_x"]).apply(teacher())
    with pytest.raises(ValueError, match="lora supports networks of diffusers only: .*lora=null"):
        lora().apply(EDMDenoiser((2, 1, 1), architecture="Affine"))


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'onestep\[lora\]'"):
        lora()


def test_attention_that_the_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="attention=flash: choose one of sdpa, xformers"):
        check_attention("flash", torch.device("cpu"))
    with pytest.raises(ValueError, match="attention=xformers needs CUDA, and this run is on cpu: use attention=sdpa"):
        check_attention("xformers", torch.device("cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'onestep\[xformers\]'"):
        check_attention("xformers", torch.device("cuda"))
    check_attention("sdpa", torch.device("cpu"))


def test_attention_of_other_networks() -> None:
    edm = EDMDenoiser((2, 1, 1), architecture="Affine")
    set_attention("sdpa", [edm, teacher()])
    with pytest.raises(ValueError, match="attention=xformers is for networks of diffusers"):
        set_attention("xformers", [edm])
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"attention=xformers does not work here: .*; use attention=sdpa"):
            set_attention("xformers", [teacher()])
