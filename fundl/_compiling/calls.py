"""Quick calls: for trees of one kind, what takes them apart, runs the compiled form, and puts the result together."""

from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

from fundl._compiling.donation import Estates, are_exclusive, bury, empty
from fundl._compiling.kinds import Kind
from fundl._compiling.program import Heir, Program
from fundl._compiling.quick import write_ambient, write_empty, write_guard
from fundl._compiling.walk import Flat, Source
from fundl.tree import Record

Arguments: TypeAlias = tuple[tuple[object, ...], dict[str, object]]
Call: TypeAlias = Callable[[tuple[object, ...], dict[str, object]], object]


class QuickCall:
    """Writes the function that a call goes through: it takes trees of one kind apart, runs, and puts the result together."""

    args: tuple[object, ...]
    kwargs: dict[str, object]
    flat: Flat
    kind: Kind
    program: Program
    source: Source
    names: list[str]
    constants: list[str]
    outputs: list[str]

    def __init__(self, arguments: Arguments, flat: Flat, kind: Kind, program: Program) -> None:
        self.args, self.kwargs = arguments
        self.flat, self.kind, self.program = flat, kind, program
        self.source = Source(program.kind.signature.counterparts(kind.signature))
        self.source.scope["run"] = program.run
        self.names = [self.source.variable() for _ in self.args]
        self.constants = [self.source.constant(constant) for constant in program.constants]
        self.outputs = [self.source.variable() for _ in range(program.outputs)]

    def write(self, estates: dict[str, Estates], shared: Callable[..., object] | None) -> Call:  # type: ignore[explicit-any]  # of any arguments
        """The function.

        Args:
            estates: where what is donated comes from, if it comes from the last call, by name.
            shared: the function compiled without donation, for donated trees that are not the only ones in their memory.
        """
        source, args, kwargs = self.source, self.args, self.kwargs
        donated = sum(len(one.leaves) for one in self.program.donated)
        write_ambient(source, self.kind.ambient, autocast=len(self.flat.leaves) == donated)
        source.add(f"if len(args) != {len(args)}: return MISS")
        source.add(f"if tuple(kwargs) != {tuple(kwargs)!r}: return MISS" if kwargs else "if kwargs: return MISS")
        if args:
            source.add(f"({', '.join(self.names)},) = args")
        if self.program.donated:
            source.scope |= {"shared": shared, "exclusive": are_exclusive, "bury": bury, "empty": empty}
            for one in self.program.donated:
                source.scope[f"estates_{one.place}"] = estates[one.name]
            self._write_shortcut(self.program.donated)
        leaves = [leaf for name, arg in zip(self.names, args, strict=True) for leaf in source.read(name, arg)]
        for keyword, arg in kwargs.items():
            name = source.variable()
            source.add(f"{name} = kwargs[{keyword!r}]")
            leaves += source.read(name, arg)
        write_guard(source, leaves, self.flat.leaves)
        if self.program.donated:
            self._write_donating(self.program.donated, leaves)
        else:
            self._run(leaves)
            source.add(f"return {source.build(self.program.result, {'input': leaves, 'output': self.outputs})}")
        return cast("Call", source.compile("def call(args, kwargs)"))

    def _run(self, leaves: Sequence[str]) -> None:
        slots = self.outputs if self.program.slots else []
        call = f"run([{', '.join([*leaves, *self.constants, *slots])}])"
        if self.program.slots:
            write_empty(self.source, self.outputs, self.program.slots)
            self.source.add(call)
        elif self.outputs:
            self.source.add(f"({', '.join(self.outputs)},) = {call}")
        elif self.program.donated:
            self.source.add(call)

    def _write_donating(self, donated: Sequence[Heir], leaves: list[str]) -> None:
        """Write a call that leaves nothing of the donated trees."""
        numbers = [number for one in donated for number in one.leaves]
        mine = ", ".join(leaves[number] for number in numbers)
        others = ", ".join([*(leaf for number, leaf in enumerate(leaves) if number not in numbers), *self.constants])
        self.source.add(f"if not exclusive([{mine}], [{others}]): return shared(*args, **kwargs)")
        self._run(leaves)
        heirs = [self.source.variable() for _ in numbers]
        self.source.add(f"({', '.join(heirs)},) = bury([{mine}])")
        trees = []
        for one in donated:
            own, heirs = heirs[: len(one.leaves)], heirs[len(one.leaves) :]
            trees.append(self.source.build(one.heir, {"heir": own}))
            kind = self.source.constant(one.kind)
            self.source.add(f"estates_{one.place}.adopt({trees[-1]}, {kind}, [{', '.join(own)}])")
        self._return(leaves, trees)

    def _return(self, leaves: Sequence[str], trees: Sequence[str]) -> None:
        names = {"input": leaves, "output": self.outputs, "tree": trees}
        self.source.add(f"return {self.source.build(self.program.result, names)}")

    def _write_shortcut(self, donated: Sequence[Heir]) -> None:
        """Write what is done if the donated records are those that the last call returned, and nobody has a part of them."""
        roots = {
            one.place: root
            for one in donated
            if one.place < len(self.args) and isinstance(root := self.args[one.place], Record)
        }
        if len(roots) < len(donated) or self.kwargs:
            return
        source, before = self.source, len(self.source.lines)
        leaves: list[str] = []
        others: list[str] = []
        for place, (name, arg) in enumerate(zip(self.names, self.args, strict=True)):
            read = [] if place in roots else source.read(name, arg)
            leaves += [f"*estate_{place}.leaves"] if place in roots else read
            others += read
        mine = {number for one in donated for number in one.leaves}
        write_guard(source, others, [leaf for number, leaf in enumerate(self.flat.leaves) if number not in mine])
        self._run(leaves)
        trees = [source.move(self.names[place], root) for place, root in roots.items()]
        for place, tree in zip(roots, trees, strict=True):
            source.add(f"empty({self.names[place]})", f"estate_{place}.follow({tree})")
        self._return([], trees)
        conditions = [
            f"estate_{one.place}.kind is {source.constant(one.kind)} and {self.names[one.place]} is estate_{one.place}.root()"
            f" and estate_{one.place}.is_untouched()"
            for one in donated
        ]
        shortcut = [f"if {' and '.join(conditions)}:", *(f"    {line}" for line in source.lines[before:])]
        source.lines[before:] = [*(f"estate_{place} = estates_{place}.last" for place in roots), *shortcut]
