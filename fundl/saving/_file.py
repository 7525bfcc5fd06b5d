"""A safetensors file that is open for reading: what its header says, and the numbers where they are wanted."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from typing import NamedTuple

import torch
from torch import Tensor

from fundl._common.files import existing_file
from fundl.saving._header import HeaderError, length_of, parsed
from fundl.saving._numbers import read_numbers, read_part, sum_of
from fundl.saving._texts import FORMAT, FORMAT_KEY, checked_sums, damaged
from fundl.tree import Cuts


class Wanted(NamedTuple):
    """A tensor of a file, and where it is to go; and if only a part is wanted, what has its shape, and what it is a part of."""

    name: str
    device: torch.device
    part: Tensor | None = None
    cuts: Cuts = ()


class File(NamedTuple):
    """An open file: the tensors by name, on the meta device, and where they begin, the metadata, and the checksums it has."""

    where: str
    stream: FileIO
    tensors: Mapping[str, Tensor]
    starts: Mapping[str, int]
    texts: Mapping[str, str]
    sums: Mapping[str, int]

    def read(self, wanted: Sequence[Wanted]) -> list[Tensor]:
        """The tensors that are wanted, each with memory of its own, if their numbers are those that were saved.

        The numbers go from the file straight into that memory. Nothing is mapped: who writes to the file later changes nothing.
        """
        return self.read_parts(wanted)[0]

    def read_parts(self, wanted: Sequence[Wanted]) -> tuple[list[Tensor], dict[str, int]]:
        """The tensors that are wanted; and of parts the remainders, which tell together whether all is as it was saved."""
        remainders: dict[str, int] = {}
        sums: dict[str, Callable[[], int]] = {}
        with ThreadPoolExecutor(1) as worker:
            loaded = [
                self._read(one, sums, worker) if one.part is None else self._read_part(one, one.part, remainders)
                for one in wanted
            ]
        self.require_saved({name: number() for name, number in sums.items()})
        return loaded, remainders

    def require_saved(self, sums: Mapping[str, int]) -> None:
        """Raise unless these are the checksums of tensors that were saved."""
        if wrong := [name for name, number in sums.items() if number != self.sums.get(name, number)]:
            raise damaged(self.where, [f"the numbers of {', '.join(name or 'its root' for name in wrong)}"])

    def _read(self, wanted: Wanted, sums: dict[str, Callable[[], int]], worker: ThreadPoolExecutor) -> Tensor:
        like = self.tensors[wanted.name]
        if wanted.device.type == "meta":
            return torch.empty_like(like)
        numbers = torch.empty(like.shape, dtype=like.dtype, device="cpu")
        if not read_numbers(self.stream, self.starts[wanted.name], numbers):
            raise self._cut_off()
        if wanted.name in self.sums:
            sums[wanted.name] = sum_of(numbers, worker)
        return numbers.to(wanted.device)

    def _read_part(self, wanted: Wanted, part: Tensor, remainders: dict[str, int]) -> Tensor:
        like = self.tensors[wanted.name]
        numbers = torch.zeros(part.shape, dtype=like.dtype, device="cpu" if wanted.device.type != "meta" else "meta")
        if numbers.is_meta:
            return numbers
        found = read_part(self.stream, self.starts[wanted.name], numbers, like, wanted.cuts)
        if found is None:
            raise self._cut_off()
        remainders[wanted.name] = found
        return numbers.to(wanted.device)

    def _cut_off(self) -> ValueError:
        return ValueError(f"{self.where} was cut off while it was read: load it again once it is whole")


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[File]:
    """The file, open; raises errors that say what is there instead, or what is wrong with it."""
    where = existing_file(path)
    with open(where, "rb", buffering=0) as stream:  # one opening, so that it is one file, even if others replace it meanwhile
        try:
            size = os.fstat(stream.fileno()).st_size
            length = length_of(stream.read(8), size)
            entries, texts = parsed(_whole(stream, length), size - 8 - length)
        except HeaderError as error:
            raise ValueError(
                f"{where} is not a safetensors file, or only a part of one ({error}): load what fundl.save wrote"
            ) from None
        if (version := texts.get(FORMAT_KEY, FORMAT)) != FORMAT:
            raise ValueError(
                f"{where} is of format {version[:20]}, from a later fundl; this one reads format {FORMAT}: update fundl"
            )
        tensors = {name: entry.like for name, entry in entries.items()}
        starts = {name: 8 + length + entry.start for name, entry in entries.items()}
        yield File(where, stream, tensors, starts, texts, checked_sums(where, tensors, texts))


def _whole(stream: FileIO, length: int) -> bytes:
    content = bytearray()
    while len(content) < length and (part := stream.read(length - len(content))):
        content += part
    return bytes(content)
