"""`python -m services.writer`: configured by DATELINE_* variables alone; `dateline writer` takes flags too."""

from services.writer.service import run
from shared.program import program

if __name__ == "__main__":
    program("writer", run, shares_its_port=True)
