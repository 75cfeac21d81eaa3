"""Files from others: what is read, and the one line of everything else."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import FiniteFloat

from onestep import reading
from onestep.reading import read_bytes, read_json, read_tensors, read_yaml


@dataclass
class Levels:
    sigma: FiniteFloat
    count: int
    later: list[FiniteFloat]


def test_a_file_of_the_structure_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"sigma": 2, "count": 3, "later": [0.5], "other": "ignored"}')
    assert read_json(path, Levels) == Levels(2.0, 3, [0.5])
    assert read_json(path, dict[str, Any])["other"] == "ignored"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no JSON"),
        (b'{"sigma": 2', "no JSON: EOF"),
        (b'{"sigma": "\xff"}', "no JSON"),
        (b'{"sigma": NaN, "count": 1, "later": []}', "no JSON: expected value"),
        (b'{"sigma": 1, "count": 1, "later": [], "other": Infinity}', "no JSON: expected value"),
        (b'{"sigma": 1e400, "count": 1, "later": []}', "sigma=inf: expected a finite number"),
        (b'{"sigma": "2", "count": 1, "later": []}', "sigma='2': expected a valid number"),
        (b'{"sigma": true, "count": 1, "later": []}', "sigma=True: expected a valid number"),
        (b'{"sigma": 1, "count": 1.5, "later": []}', "count=1.5: expected a valid integer"),
        (b'{"sigma": 1, "count": 1, "later": [1, null]}', "later.1=None: expected a valid number"),
        (b'{"sigma": 1, "count": 1}', "later is missing"),
        (b"[1, 2]", r"the content=\[1, 2\]: expected an object"),
        (b'{"sigma": ' + b"[" * 10**5, "no JSON: recursion limit"),
        (b'{"sigma": ' + b"9" * 5000 + b"}", "no JSON: number out of range"),
        (b" " * (reading.JSON_LIMIT + 1), "has more than 8,388,608 bytes"),
    ],
)
def test_another_json_is_refused_by_its_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json:? {message}") as error:
        read_json(path, Levels)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_yaml_is_plain_values(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\nb: {c: [1.0e-06, null, 'x: y']}\n")
    assert read_yaml(path) == {"a": 1, "b": {"c": [1e-6, None, "x: y"]}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: !!python/object/apply:os.system [exit]", "the tag .*os.system is not allowed"),
        (b"a: !!python/name:os.system", "the tag .*os.system is not allowed"),
        (b"a: !!float ''", "the tag .*float is not allowed"),
        (b"a: &x [1]\nb: *x", "the alias .x is not allowed"),
        (b"a: &x\n  b: *x", "the alias .x is not allowed"),
        (b"a: " + b"[" * 5000, "nested too deep"),
        (b"- " * 5000, "nested too deep"),
        (b"a: 2001-99-99", "month must be"),
        (b"a: 0x_", "no plain YAML: invalid literal"),
        (b"a: " + b"9" * 5000, "no plain YAML: Exceeds the limit"),
        (b"\xff", "no plain YAML: 'utf-8' codec"),
        (b"a: 'b", "no plain YAML: while scanning"),
        (b"[1]", "expected keys with values, got list"),
        (b"1: 2", "expected keys with values"),
        (b"", "expected keys with values, got NoneType"),
        (b"#" * (reading.YAML_LIMIT + 1), "has more than 262,144 bytes"),
    ],
)
def test_another_yaml_is_refused_by_its_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.yaml.*{message}") as error:
        read_yaml(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_library_s_message_with_a_file_s_text_is_one_line(tmp_path: Path) -> None:
    header = json.dumps({"weight": {"dtype": "a\nb", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ValueError) as caught:
        read_tensors(tmp_path / "x.safetensors")
    assert "damaged file: " in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    pipe, loop, device = tmp_path / "pipe", tmp_path / "loop", tmp_path / "device"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    device.symlink_to("/dev/zero")
    for path in (pipe, device, tmp_path):
        with pytest.raises(ValueError, match="expected a file, not a folder, a pipe or a device"):
            read_bytes(path, 10)
    for path in (loop, tmp_path / "absent", tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(ValueError, match="no such file|cannot be read"):
            read_bytes(path, 10)
