"""`python -m services.gateway`: configured by DATELINE_* variables alone; `dateline gateway` takes flags too."""

import asyncio
import os
import sys

from services.gateway.service import run
from shared.config import Config
from shared.errors import DatelineError
from shared.lifecycle import stop_on_signals
from shared.logs import configure_logs


async def _main(config: Config) -> None:
    async with stop_on_signals() as stop:
        await run(config, stop)


if __name__ == "__main__":
    try:
        _config = Config.load(os.environ)
        configure_logs(_config, service="gateway")
        asyncio.run(_main(_config))
    except DatelineError as error:
        sys.exit(f"dateline gateway: {error}")
