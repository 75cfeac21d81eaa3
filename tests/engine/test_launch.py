"""What the launchers of processes leave in the environment."""

import pytest

from onestep.engine.launch import check_launch

ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"MASTER_PORT": "1"},
        {"ACCELERATE_MIXED_PRECISION": "no"},
        ACCELERATE | {"RANK": "1"},
        ACCELERATE | {"PMI_RANK": "0"},
    ],
)
def test_launches_with_all_processes(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    check_launch()


def test_one_process_for_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ACCELERATE.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"started one process for --num_processes=2 or more.*torchrun"):
        check_launch()
