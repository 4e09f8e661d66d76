"""`python -m services.gateway`: configured by DATELINE_* variables alone; `dateline gateway` takes flags too."""

from services.gateway.service import run
from shared.program import program

if __name__ == "__main__":
    program("gateway", run, shares_its_port=True)
