"""A reader of pickles as data: it records the objects in a file, and never imports or calls a name of the file.

Python's unpickler imports the names in a file and calls them with the file's arguments, so that a checkpoint can run
any code. :class:`PickleMachine` interprets the few opcodes of checkpoints and has no operation that imports or calls.
It looks a name up in a table of the format's names, which map to recording functions of this package.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

#: Recording functions by (module, name) in the file; None for a name that is referred to but never called.
Names = Mapping[tuple[str, str], Callable[..., Any] | None]

_MAX_OPCODES = 1_000_000  # published networks of the format have less than 100,000
_MAX_ARGUMENTS = 16  # of a call: a tuple in the file can be an argument again and again
_MAX_KEY = 1 << 32  # of dictionaries: larger integers can be chosen to have equal hashes


class Recorded:
    """An object of the file, with the name of its class and its attributes."""

    def __init__(self, class_name: str, state: dict[str, Any] | None = None) -> None:
        self.class_name = class_name
        self.state = {} if state is None else state

    def set_state(self, state: Any) -> None:
        """Record the argument of ``__setstate__``.

        Raises:
            ValueError: for a state that is not a dictionary of attributes.
        """
        if type(state) is not dict:
            raise ValueError(f"a {self.class_name} has the state {short(state)}")
        self.state.update(state)


@dataclass(frozen=True)
class Name:
    """A name of the format that the file refers to."""

    module: str
    name: str


def short(value: Any) -> str:
    """``value`` as short text for an error message, without nested values and control characters."""
    if type(value) is str:
        text = value if len(value) <= 80 else value[:80] + "..."
        return text if text.isprintable() else ascii(text)
    if isinstance(value, Name):
        return f"{value.module}.{value.name}"
    return repr(value) if isinstance(value, int | float | None) else f"a {type(value).__name__}"


def _is_key(key: Any) -> bool:
    """True for a string or a small integer. Hashing a deeply nested tuple can crash Python."""
    return type(key) is str or (type(key) is int and 0 <= key < _MAX_KEY)


class PickleMachine:
    """An interpreter of pickle's opcodes that creates plain data and the records of ``names`` only.

    Args:
        names: all names that a file may refer to.
        persistent: maps a persistent id to its object; None to reject persistent ids.
    """

    def __init__(self, names: Names, persistent: Callable[[Any], Any] | None = None) -> None:
        self.names = names
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under the open marks
        self.memo: dict[int, Any] = {}
        self.copied = 0  # attributes: a dictionary in the file can be the state of many objects

    def read(self, file: BinaryIO) -> Any:
        """The object of the next pickle in ``file``; reads up to the pickle's end.

        Raises:
            ValueError: for an opcode or a name outside the format, wrong arguments of a record, or a truncated or
                invalid pickle.
        """
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
                if count == _MAX_OPCODES:
                    raise ValueError(f"it has more than {_MAX_OPCODES:,} opcodes, which no network checkpoint needs")
                operation = _OPERATIONS.get(opcode.name)
                if operation is None:
                    raise ValueError(f"it uses pickle's {opcode.name}, which no network checkpoint needs: refused")
                operation(self, argument)
        except (IndexError, KeyError, TypeError, OverflowError, AttributeError) as error:
            raise ValueError(f"its pickle is broken ({type(error).__name__}: {error})") from error
        if len(self.stack) != 1 or self.below:
            raise ValueError(f"its pickle is broken: {len(self.stack)} objects are left at its end")
        return self.stack[0]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop(self, count: int) -> list[Any]:
        items = [self.stack.pop() for _ in range(count)]
        return items[::-1]

    def memoize(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def find(self, module: Any, name: Any) -> None:
        """Push a name of the table; any other, such as "torch._utils.os.system", is an error."""
        if type(module) is not str or type(name) is not str or (module, name) not in self.names:
            raise ValueError(
                f"it asks for {short(module)}.{short(name)}, which no network checkpoint needs: refused, and nothing "
                "in the file was run"
            )
        self.push(Name(module, name))

    def call(self) -> None:
        """Record a call by the function of its name in the table."""
        name, arguments = self.pop(2)
        record = self.names[name.module, name.name] if isinstance(name, Name) else None
        if record is None or type(arguments) is not tuple:
            raise ValueError(f"it would call {short(name)}: refused, and nothing in the file was run")
        if len(arguments) > _MAX_ARGUMENTS:
            raise ValueError(f"it would call {short(name)} with {len(arguments):,} arguments: refused")
        self.push(record(*arguments))

    def set_state(self) -> None:
        target, state = self.pop(2)
        if isinstance(target, Recorded):
            self.copied += len(state) if type(state) is dict else 0
            if self.copied > _MAX_OPCODES:
                raise ValueError(f"its objects have more than {_MAX_OPCODES:,} attributes, which no network needs")
            target.set_state(state)
        elif type(target) is not dict:  # the state of a state dict is its _metadata, not needed
            raise ValueError(f"it would set the state of {short(target)}: refused")
        self.push(target)

    def find_persistent(self) -> None:
        if self.persistent is None:
            raise ValueError("it refers to an object outside of itself (a persistent id): refused")
        self.push(self.persistent(self.stack.pop()))

    def append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError(f"it would append to {short(self.stack[-1])}: refused")
        self.stack[-1].extend(items)

    def set_items(self, target: Any, items: list[Any]) -> None:
        if type(target) is not dict or not all(map(_is_key, items[::2])):
            raise ValueError(
                f"it would set items of {short(target)} by keys that are no strings or small integers: refused"
            )
        target.update(zip(items[::2], items[1::2], strict=True))

    def add_to_set(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not set or not all(type(item) is str for item in items):
            raise ValueError(f"it would add to {short(self.stack[-1])} what is no string: refused")
        self.stack[-1].update(items)

    def make_dict(self, items: list[Any]) -> None:
        target: dict[Any, Any] = {}
        self.set_items(target, items)
        self.push(target)


_Operation = Callable[[PickleMachine, Any], None]


def _pushing(make: Callable[[], Any]) -> _Operation:
    return lambda machine, _: machine.push(make())


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
}
_LITERALS = (
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
)  # fmt: skip
_OPERATIONS: dict[str, _Operation] = {
    **{name: _pushing(make) for name, make in _CONSTANTS.items()},
    **{name: lambda machine, argument: machine.push(argument) for name in _LITERALS},
    **{name: lambda machine, _: None for name in ("PROTO", "FRAME", "STOP")},
    "MARK": lambda machine, _: machine.mark(),
    "MEMOIZE": lambda machine, _: machine.memoize(len(machine.memo)),
    **{name: lambda machine, index: machine.memoize(index) for name in ("BINPUT", "LONG_BINPUT")},
    **{name: lambda machine, index: machine.push(machine.memo[index]) for name in ("BINGET", "LONG_BINGET")},
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop(3))),
    "LIST": lambda machine, _: machine.push(machine.pop_mark()),
    "DICT": lambda machine, _: machine.make_dict(machine.pop_mark()),
    "APPEND": lambda machine, _: machine.append(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.append(machine.pop_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.stack[-3], machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.below[-1][-1], machine.pop_mark()),
    "ADDITEMS": lambda machine, _: machine.add_to_set(machine.pop_mark()),
    "GLOBAL": lambda machine, names: machine.find(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.find(*machine.pop(2)),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.set_state(),
    "BINPERSID": lambda machine, _: machine.find_persistent(),
}
