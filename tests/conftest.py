"""Settings of the whole test run."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, and threads would only wait for one another

collect_ignore = ["typing"]  # programs for mypy: some of them must not run
