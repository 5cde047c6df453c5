"""What processes use, by `/proc`: those that a process started, and all that these started."""

import os
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """Return all processes below one."""
    try:
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        return []
    return children + [d for child in children for d in descendants(child)]


def memory_bytes(pid: int) -> int:
    """Return the memory of a process and all below it: shared pages are divided among their users."""
    total = 0
    for process in [pid, *descendants(pid)]:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def processor_seconds(pid: int) -> dict[int, float]:
    """Return the processor time so far of each process below one."""
    found = {}
    for process in descendants(pid):
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[process] = (int(fields[11]) + int(fields[12])) / TICKS  # utime, stime of proc(5)
    return found
