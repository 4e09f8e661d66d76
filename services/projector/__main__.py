"""`python -m services.projector`: configured by DATELINE_* variables alone; `dateline projector` takes flags too."""

import functools
import os

from services.projector.service import run
from shared.program import program

if __name__ == "__main__":
    program("projector", functools.partial(run, with_http="DATELINE_LISTEN_PORT" in os.environ))
