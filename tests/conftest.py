"""Settings of the whole test run."""

collect_ignore = ["typing"]  # programs for mypy: some of them must not run
