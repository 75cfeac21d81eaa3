"""Nothing that a checkpoint holds is run: files that try are refused by what they try, and leave no trace."""

import io
import pickle
import re
import struct
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from onestep.models.edm.checkpoint import load_edm
from onestep.models.edm.torch_file import read_checkpoint
from tests.helpers.edm_format import Call, Raw, assemble, blob, persistent, pickled, recorded, text

SHELL = Call("os", "system", ("touch PWNED_MARKER",))
EVALUATED = Call("builtins", "eval", ("open('PWNED_MARKER', 'w')",))


def torch_zip(data: bytes, **members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in members.items():
            archive.writestr(f"archive/data/{name}", content)
    return file.getvalue()


def legacy(data: bytes) -> bytes:
    """A torch file of the format before version 1.6 whose object is the pickle ``data``."""
    return blob(torch.zeros(1)).split(b"\x80\x02(", 1)[0] + data


def torch_zip_of(byte_order: bytes) -> bytes:
    file = io.BytesIO(torch_zip(pickled({})))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/byteorder", byte_order)
    return file.getvalue()


def torch_zip_with_storage(size: bytes, view: bytes = b"") -> bytes:
    """A torch file of a storage with four bytes, which its pickle refers to with the opcodes of a size and a view."""
    kind = text("torch") + text("FloatStorage") + pickle.STACK_GLOBAL
    reference = b"(" + text("storage") + kind + text("0") + text("cpu") + size + view + b"tQ"
    return torch_zip(pickled(Raw(reference)), **{"0": b"1234"})


def far_away() -> bytes:
    """A zip archive whose only member begins at byte 2^64 - 1."""
    content = torch_zip(pickled({}))
    start, end = content.rfind(b"PK\x01\x02"), content.rfind(b"PK\x05\x06")
    entry, extra = content[start:end], struct.pack("<HHQ", 1, 8, (1 << 64) - 1)
    entry = entry[:30] + struct.pack("<H", len(extra)) + entry[32:42] + b"\xff" * 4 + entry[46:] + extra
    return content[:start] + entry + content[end : end + 12] + struct.pack("<I", len(entry)) + content[end + 16 :]


def called_often(module: str, name: str, *arguments: Any, times: int = 100) -> bytes:
    """A list of what one call with the same arguments gives, which the file holds once."""
    call = text(module) + text(name) + pickle.STACK_GLOBAL + b"q\x40" + assemble(arguments) + b"q\x41"
    return pickle.PROTO + b"\x04](" + call + b"R" + b"h\x40h\x41R" * times + b"e."


def same_hash(count: int) -> bytes:
    """A dictionary whose integer keys Python hashes to 0: to make it takes time by the square of their number."""
    keys = [b"\x8a\x0c" + (i * sys.hash_info.modulus).to_bytes(12, "little") for i in range(1, count)]
    return pickle.PROTO + b"\x04}(" + b"N".join(keys) + b"Nu."


ONE = torch.ones(1)
HARMFUL: dict[str, tuple[bytes, str]] = {
    "a command": (pickled({"ema": SHELL}), r"asks for os\.system"),
    "deep in the state": (pickled({"ema": persistent("EDMPrecond", {"x": [(EVALUATED,)]})}), r"builtins\.eval"),
    "beside the network": (pickled({"loss_fn": [{"a": (1, SHELL)}]}), r"asks for os\.system"),
    "by protocol 0": (b"cos\nsystem\n(S'touch PWNED_MARKER'\ntR.", r"asks for os\.system"),
    "by INST": (b"(S'touch PWNED_MARKER'\nios\nsystem\n.", "uses pickle's "),
    "by OBJ": (b"\x80\x02(cos\nsystem\nU\x12touch PWNED_MARKERo.", r"asks for os\.system"),
    "through a known module": (
        pickled({"ema": Call("torch.nn.modules.container", "os.system", ("touch PWNED_MARKER",))}),
        r"asks for torch\.nn\.modules\.container\.os\.system",
    ),
    "a dotted name": (pickled({"ema": Call("collections", "_sys.modules.clear")}), r"collections\._sys\.modules\.cl"),
    "getattr": (pickled({"ema": Call("builtins", "getattr", ("x", "y"))}), r"asks for builtins\.getattr"),
    "torch.load": (pickled({"ema": Call("torch.serialization", "load", ("x",))}), r"torch\.serialization\.load"),
    "in a storage": (
        pickled({"ema": recorded(ONE, legacy(pickled(SHELL)))}), r"asks for os\.system",
    ),
    "a plain pickle for a storage": (pickled({"ema": recorded(ONE, pickled(SHELL))}), r"asks for os\.system"),
    "a storage in a storage": (
        pickled({"ema": recorded(ONE, legacy(pickled(Call("torch.storage", "_load_from_bytes", (b"",)))))}),
        r"asks for torch\.storage\._load_from_bytes",
    ),
    "in a torch file": (torch_zip(pickled(SHELL)), r"asks for os\.system"),
    "in an old torch file": (legacy(pickled(SHELL)), r"asks for os\.system"),
    "an object outside": (pickle.PROTO + b"\x04" + text("x") + pickle.BINPERSID + b".", "a persistent id"),
    "no storage outside": (torch_zip(b"\x80\x02" + text("x") + b"Q."), "persistent id is none of a storage"),
    "a registered extension": (pickle.PROTO + b"\x04" + pickle.EXT1 + b"\x01.", "uses pickle's EXT1"),
    "calling a class": (pickled(Call("torch", "FloatStorage", (10**12,))), r"would call torch\.FloatStorage"),
    "calling data": (pickle.PROTO + b"\x04" + text("x") + b")R.", "would call x"),
    "the state of a name": (
        pickled(Raw(text("collections") + text("OrderedDict") + pickle.STACK_GLOBAL + b"}b")), "would set the state of",
    ),
    "the state of a tensor": (
        pickled(Call("torch._utils", "_rebuild_parameter", (recorded(ONE), False, {}), {"__class__": 1})),
        "would set the state of a RecordedTensor",
    ),
    "a numpy object": (pickled(Call("numpy", "dtype", ("O8", False, True))), "dtype O8 is none of a number"),
    "a key that hashes deeply": (pickled(Raw(b"}" + b")" + b"\x85" * 100_000 + b"Ns")), "keys that are no strings"),
    "an endless string": (b"\x80\x04" + pickle.BINUNICODE8 + struct.pack("<Q", 1 << 60) + b"x.", "expected 1152921504"),
    "a storage of many": (
        torch_zip_with_storage(b"\x8a\x06" + (10**12).to_bytes(6, "little")), "storages are larger than the file",
    ),
    "a storage of others": (torch_zip_with_storage(b"K\x02"), "a storage has 4 bytes where 8 were expected"),
    "a view of a storage": (torch_zip_with_storage(b"K\x01", view=b")"), "persistent id is none of a storage"),
    "a big-endian torch file": (torch_zip_of(b"big"), "was written on a big-endian machine"),
    "a big-endian old torch file": (
        re.sub(rb"(little_endian(?:q.)?)\x88", lambda name: name[1] + pickle.NEWFALSE, blob(ONE)),
        "was written on a big-endian machine",
    ),
    "big-endian numpy numbers": (
        pickled(Call("numpy", "dtype", ("f8", False, True), (3, ">", None, None, None, -1, -1, 0))),
        "numpy numbers that are not little-endian",
    ),
    "one storage many times": (
        called_often("torch.storage", "_load_from_bytes", blob(torch.ones(9999))), "storages are larger than the file",
    ),
    "one text many times": (called_often("_codecs", "encode", "x" * 9999, "latin1"), "its bytes are more than those"),
    "another encoding": (pickled(Call("_codecs", "encode", ("x", "rot13"))), "bytes are spelt as x in rot13"),
    "keys of one hash": (same_hash(9), "keys that are no strings or small integers"),
    "what a terminal obeys": (pickled(Call("os", "\x1b[2J")), r"asks for os\.'\\x1b\[2J'"),
    "a member far away": (far_away(), "cannot be read"),
    "nothing left": (pickle.PROTO + b"\x04" + b".", "0 objects are left"),
    "an unknown memo": (b"\x80\x04h\x07.", "its pickle is broken .KeyError: 7"),
    "no pickle": (b"\x89PNG\r\n\x1a\n", "cannot be read"),
    "empty": (b"", "is empty: copy or download it again"),
    "a cut torch file": (torch_zip(pickled(1))[:60], "File is not a zip file"),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMFUL)
def test_is_refused_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, message = HARMFUL[name]
    (tmp_path / "in.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=f"in.pkl cannot be read: .*{message}|in.pkl {message}"):
        load_edm("in.pkl")
    assert [file.name for file in tmp_path.iterdir()] == ["in.pkl"]


def test_opcodes_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onestep.models.edm.safe_unpickler._MAX_OPCODES", 1000)
    for depth, message in ((1001, "more than 1,000 opcodes"), (990, "it holds a tuple, no network")):
        (tmp_path / "in.pkl").write_bytes(b"\x80\x04)" + b"\x85" * depth + b".")
        with pytest.raises(ValueError, match=message):
            load_edm(tmp_path / "in.pkl")


@pytest.mark.parametrize("name", ["a command", "by protocol 0", "by INST", "by OBJ", "in a storage"])
def test_python_itself_would_run_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above would show nothing."""
    monkeypatch.chdir(tmp_path)
    with suppress(Exception):  # what the command returns is no storage
        pickle.loads(HARMFUL[name][0])
    assert (tmp_path / "PWNED_MARKER").exists()


def test_embedded_source_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = "open('PWNED_MARKER', 'w')"
    (tmp_path / "in.pkl").write_bytes(pickled({"ema": persistent("EDMPrecond", {"sigma": 3}, source)}))
    network = read_checkpoint("in.pkl")["ema"]
    assert (network.class_name, network.state) == ("EDMPrecond", {"sigma": 3})
    assert [file.name for file in tmp_path.iterdir()] == ["in.pkl"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, (2,), (1,)), "reaches beyond its storage of 1 numbers"),
        ((1, (1,), (1,)), "reaches beyond its storage of 1 numbers"),
        ((0, (10**9, 10**9), (0, 0)), "reaches beyond its storage of 1 numbers"),
        ((-1, (1,), (1,)), "no lengths"),
        ((0, (1, 1), (1,)), "no lengths"),
    ],
)
def test_a_tensor_beyond_its_storage(arguments: tuple[Any, ...], message: str, tmp_path: Path) -> None:
    made = recorded(ONE)
    file = tmp_path / "in.pkl"
    file.write_bytes(pickled(Call(made.module, made.name, (made.arguments[0], *arguments, False, {}))))
    with pytest.raises(ValueError, match=message):
        read_checkpoint(file).tensor()
