"""Random changes to the bytes, the values or the members of a file, each a function of its random numbers."""

import copy
import io
import json
import re
import zipfile
from random import Random
from typing import Any

_NUMBERS = (-1, 0, 1, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**64, 10**18, 1e308, 5e-324, -1e30, 0.5)
_VALUES: tuple[Any, ...] = (
    *_NUMBERS, None, True, False, "", "x", "1", "nan", "a\nb\n", "${oc.env:HOME}", "../evil", "/dev/zero", "a\0b",
    "\ud7ff", "os.system", [], {}, [1, 2], [[[[1]]]], {"_target_": "os.system", "_args_": ["touch MARKER"]}, {"a": 1},
    "x" * 10_000, [0] * 10_000,
)  # fmt: skip
_TOKENS = (
    b"NaN", b"Infinity", b"null", b"{", b"}", b"[", b"]", b"[" * 2000, b'{"a":' * 2000, b"9" * 400, b"1e999", b"-",
    b"\0", b"\xff", b"!!python/object/apply:os.system", b"&a ", b"*a", b"<<: ", b"${seed}", b"../", b"\n", b"\r",
    b"\x80\x04", b"\x7f" * 8, b"PK\x03\x04", b"PK\x05\x06", b"\xff\xff\xff\xff", b"\0" * 64,
)  # fmt: skip


def mutate_bytes(content: bytes, random: Random) -> bytes:
    """One to eight changes: bits, bytes, tokens, numbers, and parts that are cut, repeated or moved."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        place = random.randrange(len(data) + 1)
        end = min(len(data), place + random.choice((1, 2, 4, 8, 64, 512)))
        change = random.randrange(9)
        if change == 0 and place < len(data):
            data[place] ^= 1 << random.randrange(8)
        elif change == 1:
            data[place:end] = random.randbytes(end - place)
        elif change == 2:
            data[place:place] = random.choice(_TOKENS)
        elif change == 3:
            data[place:end] = random.choice(_TOKENS)
        elif change == 4:
            del data[place:end]
        elif change == 5:
            data[place:place] = data[place:end] * random.choice((1, 2, 100))
        elif change == 6:
            del data[place:]
        elif change == 7 and (numbers := list(re.finditer(rb"\d+", data))):
            number = random.choice(numbers)
            data[number.start() : number.end()] = str(random.choice(_NUMBERS)).encode()
        elif place + 8 <= len(data):
            data[place : place + 8] = (random.choice((0, 1, 2**31, 2**63 - 1, 2**64 - 1))).to_bytes(
                8, random.choice(("little", "big"))
            )
    return bytes(data)


def mutate_values(values: Any, random: Random) -> Any:
    """One to four values of nested lists and dicts replaced, removed, or moved to another key."""
    values = json.loads(json.dumps(values))
    for _ in range(random.choice((1, 1, 2, 4))):
        places = [(parent, key) for parent, key in _places(values)]
        if not places:
            return copy.deepcopy(random.choice(_VALUES))
        parent, key = random.choice(places)
        change = random.randrange(5)
        if change == 0:
            del parent[key]
        elif change == 1 and isinstance(parent, dict):
            parent[random.choice(("_target_", "_args_", "path", "x", "", "_partial_"))] = parent.pop(key)
        elif change == 2:
            other, other_key = random.choice(places)
            parent[key] = json.loads(json.dumps(other.get(other_key) if isinstance(other, dict) else None))
        else:
            parent[key] = copy.deepcopy(random.choice(_VALUES))
    return values


def _places(values: Any) -> list[tuple[Any, Any]]:
    if not isinstance(values, dict | list):
        return []
    keys = list(values) if isinstance(values, dict) else list(range(len(values)))
    return [(values, key) for key in keys] + [place for key in keys for place in _places(values[key])]


def mutate_json(content: bytes, random: Random) -> bytes:
    """The JSON of changed values, or changed bytes."""
    if random.random() < 0.4:
        return mutate_bytes(content, random)
    return json.dumps(mutate_values(json.loads(content), random)).encode()


def mutate_zip(content: bytes, random: Random) -> bytes:
    """A zip with one changed or renamed member, or changed bytes."""
    if random.random() < 0.5:
        return mutate_bytes(content, random)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = random.choice(list(members))
    change = random.randrange(4)
    if change == 0:
        members[random.choice(("../" + name, name.upper(), "", "x/" + name, "dataset.json"))] = members.pop(name)
    elif change == 1:
        del members[name]
    else:
        mutate = mutate_json if name.endswith(".json") else mutate_bytes
        members[name] = mutate(members[name], random)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, member in members.items():
            archive.writestr(name or "-", member)
    return file.getvalue()


def mutate_safetensors(content: bytes, random: Random) -> bytes:
    """A safetensors file with a changed header of a matching length, or changed bytes."""
    if random.random() < 0.5:
        return mutate_bytes(content, random)
    length = int.from_bytes(content[:8], "little")
    header = mutate_json(content[8 : 8 + length], random)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]
