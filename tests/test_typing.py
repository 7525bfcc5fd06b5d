"""Programs that mypy must judge in a known way: what is right reveals the right type, what is wrong is an error.

Each file in tests/typing/ is such a program. A line that ends in ``# E: text`` must bring an error with that text, one that
ends in ``# R: type`` must reveal that type, and no other line may bring anything.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from mypy import api

ROOT = Path(__file__).parent.parent
PROGRAMS = sorted((ROOT / "tests" / "typing").glob("*.py"))
Finding = tuple[str, int, str]  # program, line, what mypy says


def expected(program: Path) -> Iterator[Finding]:
    for number, line in enumerate(program.read_text().splitlines(), start=1):
        for kind, text in re.findall(r"# ([ER]): (.*?)(?=  # [ER]: |$)", line):
            yield program.name, number, f"error: {text}" if kind == "E" else f'note: Revealed type is "{text}"'


@pytest.fixture(scope="module")
def found() -> list[Finding]:
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--no-error-summary", "--hide-error-context"]
    out, err, _ = api.run([*options, *map(str, PROGRAMS)])
    assert not err
    findings = [re.fullmatch(r".*?([^/]+\.py):(\d+): (.*)", line) for line in out.splitlines()]
    return [(match[1], int(match[2]), match[3]) for match in findings if match]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_mypy_says_what_the_program_expects(program: Path, found: list[Finding]) -> None:
    want = list(expected(program))
    assert want, "the program states no expectation"
    said = [finding for finding in found if finding[0] == program.name]
    unexpected = [finding for finding in said if not any(finding[:2] == other[:2] and other[2] in finding[2] for other in want)]
    missing = [other for other in want if not any(finding[:2] == other[:2] and other[2] in finding[2] for finding in said)]
    assert (missing, unexpected) == ([], [])
