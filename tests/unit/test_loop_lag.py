"""How late the loop is: a stall is seen, whenever somebody looks."""

import asyncio
import time

from shared.loop_lag import watch_loop_lag
from shared.metrics import Metrics


async def test_a_stall_of_the_loop_is_counted_with_its_length() -> None:
    metrics = Metrics()
    watching = asyncio.create_task(watch_loop_lag(metrics))
    await asyncio.sleep(0)
    time.sleep(0.3)
    while not (samples := metrics.registry.get_sample_value("dateline_loop_lag_seconds_count")):
        await asyncio.sleep(0.01)
    watching.cancel()
    assert samples == 1
    assert metrics.registry.get_sample_value("dateline_loop_lag_seconds_bucket", {"le": "0.2"}) == 0
