"""`dateline ops`: the operators' verbs. They talk to the log's Redis directly, not over HTTP.

One verb a module. `server` opens the Redis that they talk to; what a verb does stands with the service whose work it is.
"""

import click

from services.cli.lazy import LazyGroup

VERBS = {
    "status": "services.cli.ops.status:status",
    "replay": "services.cli.ops.replay:replay",
    "archive": "services.cli.ops.archive:archive",
    "restore": "services.cli.ops.restore:restore",
    "rebuild": "services.cli.ops.rebuild:rebuild",
    "quarantine": "services.cli.ops.quarantine:quarantine",
    "redact": "services.cli.ops.redact:redact",
    "verify": "services.cli.ops.verify:verify",
}


@click.group(cls=LazyGroup, places=VERBS)
def ops() -> None:
    """Operators' verbs: they talk to the log's Redis (--redis-url, or --data-dir of a running or stopped `up`)."""
