"""The command ``hdad``: run the daemon, or check a configuration. Root."""

from __future__ import annotations

import sys

import click

import hdad
from hdad.cli.options import STATUSES, default_path
from hdad.config import load
from hdad.errors import ExitStatus, HdadError


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=STATUSES)
@click.version_option(hdad.__version__, prog_name="hdad")
def cli() -> None:
    """hdad drains Redis Streams through worker processes, exactly once and in order, into a log on a block device."""


@cli.command()
@click.option(
    "-c", "--config", "path", default=default_path, show_default="$HDAD_CONFIG or /etc/hdad/hdad.toml", help="Configuration file."
)
def run(path: str) -> None:
    """Run the daemon in the foreground, until SIGTERM drains it."""
    from hdad import daemon

    sys.exit(daemon.run(load(path), path))


@cli.command()
@click.argument("path", required=False)
def check(path: str | None) -> None:
    """Validate a configuration file completely, stages included. Touches nothing."""
    path = path or default_path()
    config = load(path)
    from hdad.worker.child import build_router

    build_router(config)
    from hdad.source.redis_connect import read_password

    read_password(config.redis)
    click.echo(f"{path}: valid")


def main() -> None:
    """Entry point: errors become one clear message and an exit status."""
    try:
        cli.main(standalone_mode=False, prog_name="hdad")
    except click.ClickException as error:
        error.show()
        sys.exit(ExitStatus.USAGE)
    except click.Abort:
        sys.exit(ExitStatus.FAILURE)
    except HdadError as error:
        click.echo(str(error), err=True)
        hint = getattr(error, "hint", "")
        if hint:
            click.echo(hint, err=True)
        sys.exit(error.status)
