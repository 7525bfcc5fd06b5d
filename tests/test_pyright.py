"""A second type checker agrees: the examples are clean, and nothing public is without a type."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SCRIPTS = Path(sys.executable).parent


def pyright(*options: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run pyright in a folder, with this interpreter's packages."""
    environment = {**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}", "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    command = [sys.executable, "-m", "pyright", *options]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_examples_are_clean() -> None:
    result = pyright(folder=ROOT)
    assert result.returncode == 0, result.stdout


def test_every_public_type_is_known(tmp_path: Path) -> None:
    result = pyright("--verifytypes", "fundl", "--ignoreexternal", "--outputjson", folder=tmp_path)
    completeness = json.loads(result.stdout)["typeCompleteness"]
    unknown = [symbol["name"] for symbol in completeness["symbols"] if symbol["isExported"] and not symbol["isTypeKnown"]]
    assert unknown == []
    assert completeness["completenessScore"] == 1
    assert completeness["exportedSymbolCounts"]["withKnownType"] > 500
