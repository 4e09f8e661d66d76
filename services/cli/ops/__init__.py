"""`dateline ops`: the operators' verbs. They talk to the log's Redis directly, not over HTTP.

One verb a module. `server` opens the Redis that they talk to; what a verb does stands with the service whose work it is.
"""

import click

from services.cli.ops.redact import redact

commands: list[click.Command] = [redact]


@click.group()
def ops() -> None:
    """Operators' verbs: they talk to the log's Redis (--redis-url, or --data-dir of a running or stopped `up`)."""


for _command in commands:
    ops.add_command(_command)
