"""The code of the project's pages: README, and the Markdown of the site.

The `python` and `pycon` blocks of a page are one program, in their order; `<!-- a new program -->` begins another. Each line
keeps the number that it has in the page, so that an error says where it stands. A `console` block is a session of a shell.
"""

import doctest
import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = [
    ROOT / "README.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if not {"_build", "_generated"} & {*path.parts}),
]

NEW_PROGRAM: Final = "<!-- a new program -->"
FENCE: Final = re.compile(r"( *)(`{3,})(\S*)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
NEEDS: Final = re.compile(r"<!-- needs (.*) -->")


class Block(NamedTuple):
    """A block of code, and the number of its first line, from 0."""

    language: str
    code: str
    line: int
    program: int

    @property
    def examples(self) -> list[doctest.Example]:
        return doctest.DocTestParser().get_examples(self.code)


def name_of(page: Path) -> str:
    """A page's name in tests, and as a module's."""
    return "_".join(page.relative_to(ROOT).with_suffix("").parts).replace("-", "_")


def needed(page: Path) -> list[str]:
    """The packages that a page says it needs, besides those that every test has."""
    found = NEEDS.search(page.read_text())
    return found[1].split() if found else []


def blocks(page: Path) -> Iterator[Block]:
    """A page's blocks, those within others too."""
    text = page.read_text()
    for found in FENCE.finditer(text):
        indent, _, language, inside = found.groups()
        above = text[: found.start(4)]
        code = "".join(line.removeprefix(indent) for line in inside.splitlines(keepends=True))
        yield Block(language, code, above.count("\n"), above.count(NEW_PROGRAM))


def programs(page: Path) -> list[list[Block]]:
    """The Python of each program of a page, block by block."""
    ours = (block for block in blocks(page) if block.language in {"python", "pycon"})
    return [[*together] for _, together in groupby(ours, key=lambda block: block.program)]


def _pieces(block: Block) -> Iterator[tuple[int, str]]:
    """What of a block a type checker is to see: all, but what is there to fail."""
    if block.language == "python":
        yield block.line, block.code
    else:
        yield from ((block.line + example.lineno, example.source) for example in block.examples if not example.exc_msg)


def source(program: list[Block]) -> str:
    """A program as the text of a module, each line where it is in the page."""
    lines: list[str] = []
    for block in program:
        for number, code in _pieces(block):
            lines += [""] * (number - len(lines)) + code.splitlines()
    return "\n".join(lines) + "\n"


def transcripts(page: Path) -> list[str]:
    """What a shell shows, of each session."""
    return [block.code for block in blocks(page) if block.language == "console"]


if __name__ == "__main__":  # python -m tests.pages README.md: its programs, as one text
    print(*(source(program) for page in sys.argv[1:] for program in programs(ROOT / page)), sep="\n", end="")
