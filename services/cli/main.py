"""The front door: every `dateline` command under one name. Composes, holds no rules."""

import click

from services.cli import newsroom, services
from services.cli.demo.command import demo
from services.cli.ops import ops
from services.cli.tail import tail


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dateline")
def main() -> None:
    """Dateline: an event-sourced backend for live news coverage."""


for _command in (*services.commands, demo, *newsroom.commands, tail, ops):
    main.add_command(_command)


if __name__ == "__main__":
    main()
