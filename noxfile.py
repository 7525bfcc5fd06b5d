"""The versions of Python and of what fundl needs that it is tested with: `nox --list` tells the sessions.

nox --session tests-3.13                            # the newest of everything, on one Python
nox --session oldest                                # the oldest Python, and the oldest of all that fundl needs
nox --session tests-3.12 -- tests/test_layers.py    # some tests of it
"""

import nox

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
NEEDED: list[str] = nox.project.load_toml("pyproject.toml")["project"]["dependencies"]

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The newest release of all that fundl needs."""
    session.install(".[test]")
    run(session)


@nox.session(python=PYTHONS[0])
def oldest(session: nox.Session) -> None:
    """The release of each that pyproject.toml names as the oldest."""
    session.install(".[test]", *(needed.replace(">=", "==") for needed in NEEDED))
    run(session)


def run(session: nox.Session) -> None:
    """The tests, or those that are named after `--`."""
    session.run("pytest", "-n", "auto", "--dist", "worksteal", "-m", "not slow", *session.posargs)
