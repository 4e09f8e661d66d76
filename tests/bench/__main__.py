"""See the package: `python -m tests.bench [--only TABLE] [--rounds N] [--long]`."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import nullcontext

from tests.bench import fanout, folding, growth, idle, latency, machine, requests_rate, soak, stalled, storm
from tests.bench.table import Given, Table

TABLES: Mapping[str, Callable[[Table, Given], Coroutine[None, None, None]]] = {
    "folding": folding.run,
    "fanout": fanout.run,
    "idle": idle.run,
    "latency": latency.run,
    "stalled": stalled.run,
    "storm": storm.run,
    "pages": requests_rate.pages,
    "posts": requests_rate.posts,
    "growth": growth.run,
    "soak": soak.run,
}
# Only with --long, or when asked for by name.
LONG = frozenset({"soak"})


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Print figures of this machine.")
    parser.add_argument("--only", choices=TABLES, help="one table only")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each case, in turn with its peers")
    parser.add_argument("--long", action="store_true", help="the soak and feeds of a million events too")
    parser.add_argument("--readers", type=int, help="this many readers in every case: to try the bench itself")
    parser.add_argument("--seconds", type=float, help="how long a case that takes a given time lasts")
    parser.add_argument("--minutes", type=float, default=30, help="how long the soak lasts")
    asked = parser.parse_args()
    given = Given(asked.rounds, asked.readers, asked.seconds, asked.minutes, asked.long)
    table = Table()
    machine.raise_limit_of_files()
    print(machine.describe())
    print("medians of the rounds (least to most)", flush=True)
    for name, run in TABLES.items():
        if name == asked.only or (asked.only is None and (asked.long or name not in LONG)):
            try:
                with nullcontext() if run is folding.run else machine.core("rest"):
                    asyncio.run(run(table, given))
            except machine.Absent as absent:
                table.note(f"{name} skipped: {absent} is not here")
            except (AssertionError, TimeoutError) as error:
                # The other tables are measured all the same.
                table.check(False, f"{name} broke off: {error!r}")
    return 1 if table.faults else 0


sys.exit(main())
