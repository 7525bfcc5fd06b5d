"""Whether another process of this machine is still there, as Linux tells it.

A number of a process may be given to another one later, so its start belongs to it; and it means something only on the machine,
and in the container, that gave it.
"""

import os


def place_of_process() -> str:
    """What finds this process from another one of the machine; nothing, where the system does not tell."""
    try:
        started = _start_of(os.getpid())
        return "" if started is None else f"{_machine()} {os.getpid()} {started}"
    except OSError:
        return ""


def has_died(place: str) -> bool:
    """Whether a process is known to be no more; one of another machine never is."""
    machine, _, rest = place.partition(" ")
    number, _, started = rest.partition(" ")
    try:
        return bool(machine) and machine == _machine() and _start_of(int(number)) != started
    except OSError:
        return False


def _machine() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"


def _start_of(number: int) -> str | None:
    """When a process was started, in ticks of the machine's clock; None of one that has ended, or only waits to be counted."""
    try:
        with open(f"/proc/{number}/stat", encoding="utf-8", errors="replace") as file:
            state, *rest = file.read().rpartition(")")[2].split()  # the name before it may have spaces
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else rest[18]
