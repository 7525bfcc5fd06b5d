"""Settings of the whole test run."""

import os
from pathlib import Path

os.environ.setdefault("FUNDL_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "fundl"))  # not the user's
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, and threads would only wait for one another

collect_ignore = ["typing"]  # programs for mypy: some of them must not run
