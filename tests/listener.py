"""Waits for what a person is called about."""

import time
from typing import Any


def came(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the calls once there is one."""
    for _ in range(100):
        if calls:
            break
        time.sleep(0.05)
    return calls
