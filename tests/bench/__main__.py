"""`python -m tests.bench [--rounds N]`: every figure, one after the other."""

import argparse
import asyncio

from tests.bench import latency, machine


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Print figures of this machine.")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each case, in turn with its peer")
    rounds = parser.parse_args().rounds
    print(machine.describe())
    asyncio.run(latency.run(rounds=rounds, readers=(1, 100)))


main()
