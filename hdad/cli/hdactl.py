"""The command ``hdactl``: look at a daemon and operate it, look after a log. Root: parse, call, print, exit status."""

from __future__ import annotations

import sys
import time
from typing import Any

import click
from click.shell_completion import get_completion_class

import hdad
from hdad.cli import output
from hdad.cli.daemon import STATUSES
from hdad.cli.deadletters import deadletters
from hdad.cli.log import log
from hdad.config import default_path
from hdad.control.client import call
from hdad.errors import ExitStatus, HdadError, LappedError

SOCKET_DEFAULT = "/run/hdad/control.sock"


class Context:
    """Options of the whole command."""

    def __init__(self, socket: str, is_json: bool, timeout_s: float) -> None:
        self.socket, self.is_json, self.timeout_s = socket, is_json, timeout_s

    def call(self, method: str, **params: Any) -> Any:
        """Ask the daemon. Raises ControlError."""
        return call(self.socket, method, {name.rstrip("_"): value for name, value in params.items() if value is not None}, self.timeout_s)

    def show(self, result: dict[str, Any], text: str) -> None:
        """The answer, as JSON or in words."""
        if self.is_json:
            output.print_json(result)
        else:
            output.console.print(text, markup=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=STATUSES)
@click.version_option(hdad.__version__, prog_name="hdactl")
@click.option("--socket", "-s", envvar="HDAD_SOCKET", default=SOCKET_DEFAULT, show_default=True, help="Control socket of the daemon.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object instead of text for people.")
@click.option("--timeout", default=5.0, show_default=True, help="Seconds to wait for the daemon's answer.")
@click.pass_context
def cli(context: click.Context, socket: str, is_json: bool, timeout: float) -> None:
    """Look at and operate hdad, and look after its log."""
    context.obj = Context(socket, is_json, timeout)


cli.add_command(log)
cli.add_command(deadletters)


# -- looking -----------------------------------------------------------------------------------------------------------------------------


@cli.command()
@click.option("--watch", "-w", is_flag=True, help="Again and again, until ^C.")
@click.option("--interval", default=1.0, show_default=True, help="Seconds between two looks of --watch.")
@click.pass_obj
def status(context: Context, watch: bool, interval: float) -> None:
    """Roles, rates, lag per lane, the device, losses, alarms, last errors."""
    from rich.live import Live

    from hdad.cli.status import page

    if not watch:
        found = context.call("status")
        if context.is_json:
            output.print_json(found)
        else:
            output.console.print(page(found))
        return
    if context.is_json or not output.console.is_terminal:
        while True:
            found = context.call("status")
            output.print_json(found) if context.is_json else output.console.print(page(found))
            time.sleep(interval)
    with Live(page(context.call("status")), console=output.console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            live.update(page(context.call("status")), refresh=True)


@cli.command()
@click.pass_obj
def lanes(context: Context) -> None:
    """All lanes: state, position, lag, counters."""
    from hdad.cli.status import lanes_table

    found = context.call("status")
    if context.is_json:
        output.print_json(found["lanes"])
    else:
        output.console.print(lanes_table(found, len(found["lanes"])))


@cli.command()
@click.argument("count", type=int, required=False)
@click.pass_obj
def workers(context: Context, count: int | None) -> None:
    """Show the processes; with COUNT, run that many workers from now on (the file stays as it is)."""
    from hdad.cli.status import roles_table

    if count is not None:
        result = context.call("workers", count=count)
        context.show(result, f"{result['workers']} workers wanted, there were {result['before']}")
        return
    found = context.call("status")
    if context.is_json:
        output.print_json(found["roles"])
    else:
        output.console.print(roles_table(found))


# -- operating ---------------------------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("lane", nargs=-1)
@click.pass_obj
def pause(context: Context, lane: tuple[str, ...]) -> None:
    """Stop reading: the LANEs named, or all. What was read goes on its way; entries wait in Redis."""
    result = context.call("pause", lanes=list(lane) or None)
    context.show(result, f"paused: {', '.join(lane) or 'all lanes'}; go on with: hdactl resume")


@cli.command()
@click.argument("lane", nargs=-1)
@click.pass_obj
def resume(context: Context, lane: tuple[str, ...]) -> None:
    """Read again: the LANEs named, or all."""
    context.show(context.call("resume", lanes=list(lane) or None), f"resumed: {', '.join(lane) or 'all lanes'}")


@cli.command()
@click.option("--wait/--no-wait", default=True, show_default=True, help="Return when the daemon has ended.")
@click.pass_obj
def drain(context: Context, wait: bool) -> None:
    """Finish what is in flight and end the daemon, as SIGTERM does."""
    pid = context.call("status")["daemon"]["pid"]
    result = context.call("drain")
    deadline = time.monotonic() + result["timeout_s"] + 5
    while wait and _runs(pid):
        if time.monotonic() > deadline:
            raise HdadError(f"the daemon (pid {pid}) has not ended within its drain_timeout")
        time.sleep(0.05)
    context.show(result, "the daemon has ended" if wait else "draining")


def _runs(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@cli.group()
def lane() -> None:
    """One lane."""


@lane.command()
@click.argument("name")
@click.option("--from", "from_", required=True, metavar="POSITION|stay", help="Entry ID after which reading goes on.")
@click.pass_obj
def accept(context: Context, name: str, from_: str) -> None:
    """Let a halted lane go on, after its stream went backwards.

    \b
    A lane halts when its stream is an older copy (failover, restore, flush):
    entries the log has may be gone from Redis, and IDs may be used again.
      --from 0-0       read all that the stream holds now; entries that the
                       log has already come again, with the same IDs
      --from ID        only what comes after ID; the alarm names the newest
      --from stay      wait until the stream is past the log's position
    """
    result = context.call("lane-accept", lane=name, from_=None if from_ == "stay" else from_)
    context.show(result, f"lane {name} goes on from {result['from']}")


@cli.command("reload")
@click.pass_obj
def reload_(context: Context) -> None:
    """Validate the configuration file, apply what can be applied, tell key by key."""
    result = context.call("reload")
    lines = [f"{key}: {word}" for key, word in result["keys"].items()] or ["nothing has changed"]
    context.show(result, "\n".join(lines))


@cli.command("log-level")
@click.argument("level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.pass_obj
def log_level(context: Context, level: str) -> None:
    """Change the log level of all processes."""
    context.show(context.call("log-level", level=level), f"log level: {level}")


# -- checking ----------------------------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("device", required=False)
@click.option("--config", "-c", "config_path", default=default_path, help="Configuration that names the device.")
@click.pass_obj
def verify(context: Context, device: str | None, config_path: str) -> None:
    """Walk the whole log and prove order, exactly-once and conservation. Status 13 if it finds a violation."""
    from hdad.cli.log import verify_device
    from hdad.config import load

    path = device or load(config_path).log.device
    if not path:
        raise click.UsageError("this host has no log (no log.device): name a DEVICE, or verify where the log is")
    verify_device(path, context.is_json)


@cli.command()
@click.option("--config", "-c", "config_path", default=default_path, help="Configuration to examine.")
@click.pass_obj
def doctor(context: Context, config_path: str) -> None:
    """Examine device, cache, limits, Redis, clock and permissions. Each finding comes with its remedy. Status 13 if there are any."""
    from hdad.cli.doctor import examine

    findings = examine(config_path, context.socket)
    if context.is_json:
        output.print_json([finding._asdict() for finding in findings])
    else:
        for finding in findings:
            mark, style = {"ok": ("ok  ", "green"), "warning": ("warn", "yellow"), "error": ("BAD ", "red")}[finding.level]
            output.console.print(f"[{style}]{mark}[/]", end=" ")
            output.console.print(f"{finding.subject}: {finding.text}", markup=False)
            if finding.remedy:
                output.console.print(f"     -> {finding.remedy}", markup=False)
    if any(finding.level == "error" for finding in findings):
        sys.exit(ExitStatus.FINDINGS)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script: eval "$(hdactl completion bash)"."""
    complete = get_completion_class(shell)
    assert complete is not None
    click.echo(complete(cli, {}, "hdactl", "_HDACTL_COMPLETE").source())


def main() -> None:
    """Entry point: errors become one clear message and an exit status."""
    try:
        cli.main(standalone_mode=False, prog_name="hdactl")
    except click.ClickException as error:
        error.show()
        sys.exit(ExitStatus.USAGE)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(ExitStatus.OK)
    except HdadError as error:
        output.errors.print(f"hdactl: {error}", markup=False)
        hint = getattr(error, "hint", "")
        if isinstance(error, LappedError):
            hint = f"Read on with --from {error.oldest_lsn}"
        if hint:
            output.errors.print(hint, markup=False)
        sys.exit(error.status)
