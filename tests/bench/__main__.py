"""`python -m tests.bench [--rounds N] [--only latency|folding] [--long]`: every figure, one after the other."""

import argparse
import asyncio

from tests.bench import folding, latency, machine

SIZES = (10_000, 100_000)
SIZES_LONG = (*SIZES, 1_000_000)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Print figures of this machine.")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each case, in turn with its peer")
    parser.add_argument("--only", choices=("latency", "folding"), help="one table only")
    parser.add_argument("--long", action="store_true", help="rebuild and verify a feed of a million events too")
    given = parser.parse_args()
    print(machine.describe())
    if given.only != "folding":
        asyncio.run(latency.run(rounds=given.rounds, readers=(1, 100)))
    if given.only != "latency":
        asyncio.run(folding.run(rounds=given.rounds, sizes=SIZES_LONG if given.long else SIZES))


main()
