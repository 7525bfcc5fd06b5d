"""Builds the pages of this folder, each into one file that works without a network: page, style, program, graphs, runtime.

    python examples/browser/build.py --runtime examples/browser/node_modules/onnxruntime-web/dist --out build/browser

`make browser` does so, with ``--serve``. A page NAME is made of NAME.html and NAME.js, which uses page.css and the
modules that it imports, and of the files that a function of Python writes: graphs, the settings that they were made with, data.
"""

import argparse
import base64
import gzip
import html
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from typing_extensions import override

import digits_network
import disk_network

HERE: Final = Path(__file__).parent
PAGES: Final[Mapping[str, Callable[[Path], None]]] = {
    "disk": disk_network.write,
    "digits": digits_network.write,
}
"""What each page needs is written into a folder."""

IMPORT: Final = re.compile(r'\bfrom "([\w-]+)";$', re.MULTILINE)
PACKAGE: Final = "onnxruntime-web"
RUNTIME: Final = "ort.wasm.bundle.min.mjs"
MACHINE: Final = "ort-wasm-simd-threaded.wasm"
STYLE: Final = '<link rel="stylesheet" href="page.css">'
PROGRAM: Final = '<script type="module" src="{}.js"></script>'
POLICY: Final = (  # the browser itself sees to it that nothing is fetched
    "default-src 'none'; script-src 'unsafe-inline' 'wasm-unsafe-eval' data:; style-src 'unsafe-inline'; img-src data:"
)


def build(page: str, runtime: Path) -> str:
    """The text of a page.

    Args:
        page: its name.
        runtime: the folder `dist` of the package onnxruntime-web.
    """
    with tempfile.TemporaryDirectory() as folder:
        PAGES[page](Path(folder))
        return assembled(page, Path(folder), runtime)


def assembled(page: str, folder: Path, runtime: Path) -> str:
    """The text of a page, with the files of a folder in it."""
    files = {path.name: in_base64(path.read_bytes()) for path in sorted(folder.iterdir())}
    program = text_of(HERE / f"{page}.js")
    modules = {name: text_of(runtime / RUNTIME if name == PACKAGE else HERE / f"{name}.js") for name in imported(program)}
    imports = {name: f"data:text/javascript;base64,{in_base64(text.encode())}" for name, text in modules.items()}
    style = f"""<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">
<style>
{text_of(HERE / "page.css")}</style>
<script type="importmap">{json.dumps({"imports": imports})}</script>"""
    machine = in_base64(gzip.compress((runtime / MACHINE).read_bytes(), 9, mtime=0))
    scripts = f"""<script type="application/json" id="files">{json.dumps(files)}</script>
<script type="text/plain" id="machine">{machine}</script>
<script type="module">
{program}</script>"""
    text = text_of(HERE / f"{page}.html")
    for mark, content in ((STYLE, style), (PROGRAM.format(page), scripts)):
        if text.count(mark) != 1:
            raise ValueError(f"{page}.html must have once {mark}")
        text = text.replace(mark, content)
    return text


def imported(program: str) -> Sequence[str]:
    """The modules that a program imports, each once, and those of this folder that they import in their turn."""
    found: list[str] = []
    programs = [program]
    while programs:
        new = [name for name in IMPORT.findall(programs.pop()) if name not in found]
        found += new
        programs += [text_of(HERE / f"{name}.js") for name in new if name != PACKAGE]
    return found


def in_base64(content: bytes) -> str:
    """Bytes as text."""
    return base64.b64encode(content).decode()


def text_of(path: Path) -> str:
    """What a file holds."""
    return path.read_text(encoding="utf-8")


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, and says nothing of each."""

    @override
    def log_message(self, format: str, *args: object) -> None:
        pass


def server_of(folder: Path, port: int) -> ThreadingHTTPServer:
    """Serves a folder to this machine alone, at the port, or at another one where that is taken."""
    handler = partial(Quiet, directory=str(folder))
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError:
        return ThreadingHTTPServer(("127.0.0.1", 0), handler)


def serve(folder: Path, pages: Sequence[str], port: int) -> None:
    """Serve the pages until Ctrl-C, and say where."""
    with server_of(folder, port) as server:
        for page in pages:
            print(f"http://127.0.0.1:{server.server_port}/{page}.html", flush=True)
        print("Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def main() -> None:
    """Build pages, and serve them if asked to."""
    parser = argparse.ArgumentParser(description="Build pages that train in a browser, each in one file.")
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"which ones: {', '.join(PAGES)}; all, if none is named")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the pages; made if it is not there")
    parser.add_argument("--runtime", type=Path, required=True, help="the folder dist of the npm package onnxruntime-web")
    parser.add_argument("--serve", action="store_true", help="serve them to this machine, and say where")
    parser.add_argument("--port", type=int, default=8000, help="where, if it is free; 8000 by default")
    options = parser.parse_args()
    out: Path = options.out
    runtime: Path = options.runtime
    pages: list[str] = options.pages or [*PAGES]
    if unknown := [page for page in pages if page not in PAGES]:
        parser.error(f"there is no page {', '.join(unknown)}, only {', '.join(PAGES)}")
    if not (runtime / MACHINE).is_file():
        parser.error(f"{runtime} holds no {MACHINE}: run npm ci in {HERE}, and name its node_modules/onnxruntime-web/dist")
    out.mkdir(parents=True, exist_ok=True)
    for page in pages:
        (out / f"{page}.html").write_text(build(page, runtime), encoding="utf-8")
    if options.serve:
        serve(out, pages, options.port)


if __name__ == "__main__":
    main()
