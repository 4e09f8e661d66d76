"""Loop lag: how late this process's event loop wakes who sleeps, which is how long everybody in it waited.

Owns the sampling; one task a process.
"""

import asyncio

from shared.metrics import Metrics

# Short beside the stalls that matter, so that each is met, and long beside the cost of a look.
SAMPLE_SECONDS = 0.05


async def watch_loop_lag(metrics: Metrics) -> None:
    """Sample until cancelled."""
    clock = asyncio.get_running_loop().time
    while True:
        before = clock()
        await asyncio.sleep(SAMPLE_SECONDS)
        metrics.loop_lag_seconds.observe(max(0.0, clock() - before - SAMPLE_SECONDS))
