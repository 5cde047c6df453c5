"""A web application on loopback: `python -m flows.servers.serve MODULE:FACTORY PORT`.

It is what `uvicorn --factory` does, started in two thirds of the time: while the application is
imported nothing is garbage, and afterwards its modules are never searched for garbage.
"""

import gc
import sys
from importlib import import_module

import uvicorn


def main() -> None:
    """Serve until a signal ends this process."""
    module, _, factory = sys.argv[1].partition(":")
    gc.disable()
    app = getattr(import_module(module), factory)()
    gc.freeze()
    gc.enable()
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")


if __name__ == "__main__":
    main()
