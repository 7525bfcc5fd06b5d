"""What the build draws: the disk that a network learned, and the map of modules.

They go to docs/_generated/, and are made anew when what they show is newer.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import module_map
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "docs" / "_generated"


def _disk(file: Path) -> None:
    program = ROOT / "examples" / "disk.py"
    subprocess.run(
        [sys.executable, str(program), "--no-jit", "--quiet", "--plot", str(file)], check=True, stdout=subprocess.DEVNULL
    )


PICTURES: dict[str, tuple[Callable[[Path], None], str]] = {
    "disk.png": (_disk, "examples/disk.py"),
    "modules.svg": (module_map.draw, "fundl/**/*.py"),
}


def _make(_app: Sphinx) -> None:
    GENERATED.mkdir(exist_ok=True)
    for name, (draw, sources) in PICTURES.items():
        file = GENERATED / name
        newest = max(path.stat().st_mtime for path in ROOT.glob(sources))
        if not file.exists() or file.stat().st_mtime < newest:
            draw(file)


def setup(app: Sphinx) -> ExtensionMetadata:
    """Draw before the pages are read."""
    app.connect("builder-inited", _make)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
