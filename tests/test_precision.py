"""The choice of a precision: bf16 only where the device computes in it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from onestep.build.run import build_run, started_run
from onestep.build.sampling import sample
from onestep.precision import choose_precision
from tests.helpers.configs import Configure, configure, refused, tiny_config, tiny_pretraining


@pytest.mark.parametrize("capability, expected", [("AVX512", "bf16"), ("AVX2", "no"), ("DEFAULT", "no")])
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_auto_on_a_cpu(capability: str, expected: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert choose_precision("auto", device) == expected
    assert choose_precision("auto", device, "bf16_critics") == {"bf16": "bf16_critics", "no": "no"}[expected]
    assert [choose_precision(named, device) for named in ("no", "bf16")] == ["no", "bf16"]
    with pytest.raises(ValueError, match="precision=fp16: on a CPU it would be computed in float32"):
        choose_precision("fp16", device)
    with pytest.raises(ValueError, match="device=cuda: torch finds no accelerator on this machine"):
        choose_precision("no", "cuda")


@pytest.mark.parametrize("supported, expected", [(True, "bf16"), (False, "no")])
def test_auto_on_a_gpu(supported: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported or including_emulation)
    # The CPU's capability does not matter.
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT" if supported else "AVX512")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert choose_precision("auto", "auto") == choose_precision("auto", "cuda") == expected
    assert choose_precision("fp16", "auto") == "fp16"
    with pytest.raises(ValueError, match="device=mps: torch finds an accelerator of the type cuda"):
        choose_precision("auto", "mps")


@pytest.mark.parametrize(
    ("count", "visible", "expected"),
    [
        (0, None, "torch finds 0 CUDA devices: a process takes the first that it sees, so start it with "
                  "CUDA_VISIBLE_DEVICES=3, and set device=cuda"),
        (1, "2", "torch finds 1 CUDA device (CUDA_VISIBLE_DEVICES=2): a process takes"),
        (8, "", "torch finds 8 CUDA devices (CUDA_VISIBLE_DEVICES=): a process takes"),
    ],
)  # fmt: skip
def test_one_of_several_devices(
    count: int, visible: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with pytest.raises(
            ValueError, match=rf"device=xpu: torch finds .* \(CUDA_VISIBLE_DEVICES={visible}\); use dev"
        ):
            choose_precision("no", "xpu")
    message = refused(configure("train", "output=o", "device=cuda:3"))
    assert message.startswith(f"device=cuda:3: expected one of auto, cpu, cuda, mps, xpu; {expected}")
    assert "CUDA_VISIBLE" not in refused(configure("train", "output=o", "device=tpu"))


@pytest.mark.parametrize(
    "make, capability, asked, chosen, line",
    [
        (tiny_config, "AVX512", "auto", "bf16_critics", "bf16 for the critics, because this CPU has instructions for "
         "bf16; float32 for the generator, because bf16 would round off the difference of its scores"),
        (tiny_config, "AVX2", "auto", "no", "float32, because this CPU has no instructions for bf16"),
        (tiny_config, "AVX2", "bf16", "bf16", "bf16, because precision=bf16 is set; teacher and fake score in float32 "
         "for the generator, because bf16 would round off the difference of its scores"),
        (tiny_config, "AVX512", "no", "no", "float32, because precision=no is set"),
        (tiny_pretraining, "AVX512", "auto", "bf16", "bf16, because this CPU has instructions for bf16"),
        (tiny_pretraining, "AVX2", "auto", "no", "float32, because this CPU has no instructions for bf16"),
    ],
)  # fmt: skip
def test_a_run_says_and_records_what_was_chosen(
    make: Configure, capability: str, asked: str, chosen: str, line: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with started_run(make(tmp_path, f"precision={asked}")) as run:
        run.write_config()
        assert run.accelerator.mixed_precision == ("no" if chosen == "no" else "bf16")
    assert capsys.readouterr().out == f"precision: {line}\n"
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["precision"] == chosen


@pytest.mark.parametrize("command, place", [("pretrain", "output"), ("sample", "save_to")])
def test_only_distillations_have_critics(command: str, place: str) -> None:
    message = refused(configure(command, "precision=bf16_critics", f"{place}=o"))
    assert message == "precision=bf16_critics: expected one of auto, no, bf16, fp16"


@pytest.mark.parametrize("allowed", ["true", "false"])
@pytest.mark.parametrize("command", ["train", "sample"])
def test_tf32_is_for_matrix_products_and_convolutions(
    command: str, allowed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both of torch's views of the setting are read, as torch's compiler reads both."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    convolutions: Any = cudnn
    assert not configure("train").tf32 and not configure("sample").tf32
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed == "false"
    try:
        if command == "train":
            build_run(tiny_config(tmp_path, f"tf32={allowed}"))
        else:
            assert "expected metrics" in refused(
                configure("sample", "images=x", f"save_to={tmp_path}", f"tf32={allowed}"), sample
            )
        assert matmul.allow_tf32 is cudnn.allow_tf32 is (allowed == "true")
        assert (matmul.fp32_precision == "tf32", convolutions.conv.fp32_precision == "tf32") == (allowed == "true",) * 2
        assert torch.get_float32_matmul_precision() == ("high" if allowed == "true" else "highest")
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
