"""The function that a call of a compiled one goes through: written for arguments of one structure, see `call_text`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias, cast

from fundl._common.generated import define
from fundl._compiling.cache_keys import CacheKey
from fundl._compiling.call_text import CallText, fill, lines, listed
from fundl._compiling.donation import LastReturned, clear_fields, own_their_memory, take_memory
from fundl._compiling.overwriting import CallProgram
from fundl._compiling.trees import Flat
from fundl.tree import Record

Arguments: TypeAlias = tuple[tuple[object, ...], dict[str, object]]
Call: TypeAlias = Callable[[tuple[object, ...], dict[str, object]], object]

_CALL: Final = """
def call(args, kwargs):
    if {settings_changed}: return MISS
    if len(args) != {count} or {keywords_differ}: return MISS
    {name_arguments}
    {move_donated}
    {take_apart}
    {require_like_tensors}
    {run}
    {make_result}
    return {result}
"""

# If a donated record is the one that the last call returned, and nobody holds a part of it, its parts move to a new record.
_MOVE_DONATED: Final = """
{find_last}
if {is_last}:
    {take_apart}
    {require_like_tensors}
    {run}
    {move}
    {empty}
    {make_result}
    return {result}
"""

# Else its tensors are taken apart as those of all arguments, written over, and handed on as new tensors over the same memory.
_WRITE_OVER_DONATED: Final = """
if not own_their_memory([{donated}], [{others}]): return shared(*args, **kwargs)
{run}
({tensors},) = take_memory([{donated}])
{make_trees}
{remember}
"""


class CallWriter:
    """Writes the function for calls whose arguments have one structure.

    Args:
        arguments: of a call, as an example.
        flat: these taken apart.
        key: their cache key.
        program: what runs.
        returned: for each donated argument, what was last returned in its place.
        shared: the function compiled without donation, for donated trees that are not the only ones in their memory.
    """

    def __init__(  # type: ignore[explicit-any]  # of any arguments
        self,
        arguments: Arguments,
        flat: Flat,
        key: CacheKey,
        program: CallProgram,
        *,
        returned: Mapping[str, LastReturned],
        shared: Callable[..., object] | None,
    ) -> None:
        self.args, self.kwargs = arguments
        self.flat, self.key, self.interface = flat, key, program.interface
        self.text = CallText(program.key.signature.counterparts(key.signature))
        self.text.scope |= {"run": program.run, "shared": shared, "clear_fields": clear_fields}
        self.text.scope |= {"own_their_memory": own_their_memory, "take_memory": take_memory}
        for one in self.interface.donated:
            structure = (key.signature.arguments[one.place], key.leaves[one.leaves.start : one.leaves.stop])
            last = returned[one.name]
            self.text.scope |= {f"returned_{one.place}": last, f"key_{one.place}": last.key(structure)}
        self.trees = [*self.args, *self.kwargs.values()]
        self.names = self.text.variables(len(self.trees))
        self.constants = [self.text.constant(constant) for constant in self.interface.constants]
        self.outputs = self.text.variables(self.interface.outputs)
        self.donated = [number for one in self.interface.donated for number in one.leaves]

    def write(self) -> Call:
        """The function."""
        text, donated, count = self.text, self.interface.donated, len(self.args)
        apart = [text.take_apart(name, tree) for name, tree in zip(self.names, self.trees, strict=True)]
        leaves = [leaf for _, own in apart for leaf in own]
        run, trees = self._write_over_donated(leaves) if donated else (self._run(leaves), [])
        make_result, result = self._result(leaves, trees)
        source = fill(
            _CALL,
            settings_changed=text.settings_changed(self.key.settings, autocast=len(self.flat.leaves) == len(self.donated)),
            count=str(count),
            keywords_differ=f"tuple(kwargs) != {tuple(self.kwargs)!r}" if self.kwargs else "kwargs",
            name_arguments=lines(
                f"({listed(self.names[:count])},) = args" if count else "",
                *(f"{name} = kwargs[{word!r}]" for name, word in zip(self.names[count:], self.kwargs, strict=True)),
            ),
            move_donated=self._move_donated() if donated else "",
            take_apart=lines(*(code for code, _ in apart)),
            require_like_tensors=text.require_like(leaves, self.flat.leaves),
            run=run,
            make_result=make_result,
            result=result,
        )
        return cast("Call", define(source, "call", text.scope))

    def _run(self, leaves: Sequence[str]) -> str:
        """Statements that run the program."""
        slots = self.outputs if self.interface.slots else []
        run = f"run([{listed([*leaves, *self.constants, *slots])}])"
        if slots:
            return lines(self.text.allocate(slots, self.interface.slots), run)
        if self.outputs:
            return f"({listed(self.outputs)},) = {run}"
        return run if self.donated else ""

    def _result(self, leaves: Sequence[str], trees: Sequence[str]) -> tuple[str, str]:
        """Statements and an expression that make the result."""
        return self.text.put_together(self.interface.result, {"input": leaves, "output": self.outputs, "tree": trees})

    def _write_over_donated(self, leaves: Sequence[str]) -> tuple[str, list[str]]:
        """Statements that run the program and leave nothing of the donated trees; and the trees that take their place."""
        tensors = dict(zip(self.donated, self.text.variables(len(self.donated)), strict=True))
        trees: list[tuple[str, str]] = []
        remember: list[str] = []
        for one in self.interface.donated:
            own = [tensors[number] for number in one.leaves]
            trees.append(self.text.put_together(one.replacement, {"over donated": own}))
            remember.append(f"returned_{one.place}.remember({trees[-1][1]}, key_{one.place}, [{listed(own)}])")
        code = fill(
            _WRITE_OVER_DONATED,
            donated=listed([leaves[number] for number in self.donated]),
            others=listed([*(leaf for number, leaf in enumerate(leaves) if number not in tensors), *self.constants]),
            run=self._run(leaves),
            tensors=listed([*tensors.values()]),
            make_trees=lines(*(made for made, _ in trees)),
            remember=lines(*remember),
        )
        return code, [tree for _, tree in trees]

    def _move_donated(self) -> str:
        """Statements for donated records that the last call returned; none if others are donated."""
        records = {one.place: tree for one in self.interface.donated if isinstance(tree := self.trees[one.place], Record)}
        if len(records) < len(self.interface.donated) or self.kwargs:
            return ""
        apart = {
            place: self.text.take_apart(name, tree)
            for place, (name, tree) in enumerate(zip(self.names, self.trees, strict=True))
            if place not in records
        }
        counts = {one.place: len(one.leaves) for one in self.interface.donated}
        given, leaves = list[str](), list[str]()
        for place in range(len(self.trees)):
            own = apart[place][1] if place in apart else [f"last_{place}.leaves[{n}]" for n in range(counts[place])]
            given += own if place in apart else [f"*last_{place}.leaves"]
            leaves += own
        moved = {place: self.text.moved(self.names[place], record) for place, record in records.items()}
        make_result, result = self._result(leaves, [name for _, name in moved.values()])
        return fill(
            _MOVE_DONATED,
            find_last=lines(*(f"last_{place} = returned_{place}.last" for place in records)),
            is_last=" and ".join(
                f"last_{one.place}.key is key_{one.place} and {self.names[one.place]} is last_{one.place}.root()"
                f" and last_{one.place}.is_unshared()"
                for one in self.interface.donated
            ),
            take_apart=lines(*(code for code, _ in apart.values())),
            require_like_tensors=self.text.require_like(
                [leaf for _, own in apart.values() for leaf in own],
                [leaf for number, leaf in enumerate(self.flat.leaves) if number not in self.donated],
            ),
            run=self._run(given),
            move=lines(*(code for code, _ in moved.values())),
            empty=lines(
                *(f"clear_fields({self.names[place]})\nlast_{place}.move_to({new})" for place, (_, new) in moved.items())
            ),
            make_result=make_result,
            result=result,
        )
