"""Figures, never verdicts: `python -m tests.bench` prints them with the machine and the commit. Nothing here is a test.

    python -m tests.bench                          every table but the soak, about half an hour
    python -m tests.bench --only fanout            one of folding fanout idle latency stalled storm pages posts growth soak
    python -m tests.bench --only soak --minutes 5
    python -m tests.bench --long                   the soak and feeds of a million events as well
    python -m tests.bench --rounds 1 --readers 50 --seconds 3    does the bench itself work?

Each figure is the median of the rounds with the least and the most, beside its goal where it has one. Processes are real, the
one under measure has a core for itself, all else runs on another; peers take turns with it in one run, because a machine
drifts: compare ratios. What is compared is CPU time, not the clock's, wherever a goal is not about latency. Linux only, but
for folding. A C compiler, nchan and wrk (Debian: gcc, libnginx-mod-nchan, wrk) are used where they are; what lacks them says
so. Whatever was lost, repeated or out of order is printed as WRONG, and the exit code is 1.
"""
