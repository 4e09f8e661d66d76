"""`python -m tests.mutations [NAME…] [--list] [--one-in N]`: exit 0 when no mutant lived, 1 with the survivors, 2 usage.

NAME is a script (`append.lua`) or a Python file of the list of patches; without one, all.
"""

import argparse
import time

from tests.mutations.driver import Verdict, all_mutants, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true", help="print the mutants and run none")
    parser.add_argument("--one-in", type=int, default=1, metavar="N", help="judge every Nth mutant only")
    options = parser.parse_args()
    mutants = all_mutants()
    names = options.names or list(mutants)
    if unknown := [name for name in names if name not in mutants]:
        parser.error(f"no such script or patched file: {', '.join(unknown)}; known: {', '.join(mutants)}")
    if options.list:
        for name in names:
            print(*mutants[name], sep="\n")
        return 0
    started = time.monotonic()
    verdicts = run(names, on_verdict=show, one_in=options.one_in)
    survivors = [verdict.mutant for verdict in verdicts if verdict.by is None]
    minutes = (time.monotonic() - started) / 60
    print(
        f"{len(verdicts)} mutants, {len(verdicts) - len(survivors)} killed, {len(survivors)} alive, {minutes:.1f} min"
    )
    print(*survivors, sep="\n")
    return 1 if survivors else 0


def show(verdict: Verdict) -> None:
    fate = "ALIVE" if verdict.by is None else f"killed by {verdict.by}"
    print(f"{verdict.seconds:5.1f} s  {verdict.mutant}: {fate}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
