"""The pages of examples/browser, built and shown by Chromium without a network; what goes wrong in them fails the test."""

import fcntl
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

import build

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

RUNTIME = build.HERE / "node_modules" / "onnxruntime-web" / "dist"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDE, NARROW = (1280, 800), (380, 780)


@contextmanager
def browser() -> Generator["Browser"]:
    """Chromium; the test is skipped where there is none, or nothing to build a page with."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed, of the extra test")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium among the programs")
    if not RUNTIME.is_dir():
        pytest.skip(f"onnxruntime-web is not installed: npm ci --prefix {build.HERE}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started, started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as chromium:
        yield chromium


@functools.cache
def built(name: str, write: Callable[[Path], None]) -> Path:
    """The file of a page, of what `write` writes: made by one of the processes that run tests side by side."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    folder = Path(tempfile.gettempdir()) / f"fundl-pages-{run}" / name
    folder.mkdir(parents=True, exist_ok=True)
    file, files = folder / f"{name}.html", folder / "files"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            files.mkdir(exist_ok=True)
            write(files)
            file.write_text(build.assembled(name, files, RUNTIME), encoding="utf-8")
    return file


@contextmanager
def shown(
    chromium: "Browser",
    name: str,
    size: tuple[int, int] = WIDE,
    theme: Literal["light", "dark"] = "light",
    *,
    write: Callable[[Path], None] | None = None,
) -> Generator["Page"]:
    """A page from its file, offline; it is an error if it writes to the console, raises, or asks for anything."""
    found: list[str] = []
    with chromium.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=theme) as context:
        context.set_offline(True)
        context.set_default_timeout(120_000)  # for a machine that does much else
        page = context.new_page()
        page.on("console", lambda message: found.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: found.append(str(error)))
        page.on("request", lambda request: found.append(request.url) if request.url.startswith(("http", "ws")) else None)
        page.goto(built(name, write or build.PAGES[name]).as_uri())
        yield page
    assert not found
