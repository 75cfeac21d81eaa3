"""A run's record is data, whoever wrote it."""

from pathlib import Path

import pytest

from onestep.engine.records import read_record, select


def test_values_come_back_and_parts_are_selected(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("teacher:\n  path: digits\n  guidance: 1.5\ndata: own.Images\n")
    record = read_record(tmp_path)
    assert record == {"teacher": {"path": "digits", "guidance": 1.5}, "data": "own.Images"}
    assert [select(record, key) for key in ("teacher.guidance", "data.path", "sampler.steps")] == [1.5, None, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("teacher: !!python/object/apply:os.system ['touch {folder}/ran']", "python/object/apply"),
        ("teacher: !!python/object/new:os._wrap_close [1]", "python/object/new"),
        ("- a\n- b\n", "list"),
        ("a: [1", "config.yaml"),
    ],
)
def test_what_is_no_record_is_refused_and_runs_nothing(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text.format(folder=tmp_path))
    with pytest.raises(ValueError, match=message):
        read_record(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path / "config.yaml")):
        read_record(tmp_path)
