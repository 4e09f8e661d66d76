"""The front door: every `dateline` command under one name. Composes, holds no rules."""

import click

from services.cli.lazy import LazyGroup

COMMANDS = {
    "up": "services.cli.services:up",
    "demo": "services.cli.demo.command:demo",
    "writer": "services.cli.services:writer",
    "projector": "services.cli.services:projector",
    "gateway": "services.cli.services:gateway",
    "open": "services.cli.newsroom:open_feed",
    "publish": "services.cli.newsroom:publish",
    "correct": "services.cli.newsroom:correct",
    "retract": "services.cli.newsroom:retract",
    "pin": "services.cli.newsroom:pin",
    "export": "services.cli.transfer:export_feed",
    "import": "services.cli.transfer:import_feed",
    "tail": "services.cli.tail:tail",
    "ops": "services.cli.ops:ops",
    "config": "services.cli.services:show_config",
}


@click.group(cls=LazyGroup, places=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dateline")
def main() -> None:
    """Dateline: an event-sourced backend for live news coverage."""


if __name__ == "__main__":
    main()
