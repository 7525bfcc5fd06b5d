"""What the pages show is true: their Python runs, gives what they say it gives, and type-checks; so do their shells."""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mypy import api

from tests import pages
from tests.pages import PAGES, ROOT, Block

LANGUAGES = {"python", "pycon", "console", "text", "toml", "json", "js"}  # the last four are not run


def run(program: list[Block], page: Path) -> None:
    """Run the blocks of a program one after the other, and compare what examples give with what the page says."""
    names: dict[str, object] = {"__name__": "__page__"}
    for block in program:
        if block.language == "python":
            exec(compile("\n" * block.line + block.code, str(page), "exec"), names)
        else:
            test = doctest.DocTest(block.examples, {}, page.name, str(page), block.line, block.code)
            test.globs = names  # not a copy: what an example names, later blocks use
            said: list[str] = []
            doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append, clear_globs=False)
            assert not said, "".join(said)


@pytest.mark.parametrize("page", PAGES, ids=pages.name_of)
def test_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in pages.needed(page):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    for program in pages.programs(page):
        run(program, page)


def test_pages_type_check(tmp_path: Path) -> None:
    """All at once; but for pages about frameworks that are not among the tests' packages."""
    files = []
    for page in PAGES:
        for number, program in enumerate([] if pages.needed(page) else pages.programs(page)):
            files.append(tmp_path / f"{pages.name_of(page)}_{number}.py")
            files[-1].write_text(pages.source(program) + "# mypy: allow-untyped-calls\n")  # torch gives backward no types
    out, err, code = api.run(["--config-file", str(ROOT / "pyproject.toml"), *map(str, files)])
    assert code == 0, out + err


@pytest.mark.parametrize("page", PAGES, ids=pages.name_of)
def test_a_page_says_what_its_blocks_are(page: Path) -> None:
    for block in pages.blocks(page):
        assert block.language in LANGUAGES or block.language.startswith("{"), f"{page}:{block.line}: {block.language!r}"


SESSIONS = [(page, session) for page in PAGES for session in pages.transcripts(page)]


@pytest.mark.parametrize(("page", "session"), SESSIONS, ids=[pages.name_of(page) for page, _ in SESSIONS])
def test_a_session_is_what_the_terminal_shows(page: Path, session: str, tmp_path: Path) -> None:
    """`$ cat file` shows what is in the file; each other command is run, and what it shows compared."""
    _, *parts = re.split(r"^\$ (.*)\n", session, flags=re.MULTILINE)
    (tmp_path / "mypy.ini").write_text("[mypy]\nplugins = fundl_mypy\n")
    tools = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment = {**os.environ, **tools, "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache" / "pages"), "PYTHONPATH": str(ROOT)}
    for command, shown in zip(parts[::2], parts[1::2], strict=True):
        if command.startswith("cat "):
            (tmp_path / command.removeprefix("cat ")).write_text(shown)
            continue
        result = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert result.stdout == shown, f"{page}: {command}\n{result.stderr}"
