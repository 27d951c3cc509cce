"""The command ``hdactl``: look at a daemon and operate it, look after a log. Root: parse, call, print, exit status."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import click
from click.shell_completion import get_completion_class

import hdad
from hdad.cli import output
from hdad.cli.deadletters import deadletters
from hdad.cli.log import log
from hdad.cli.options import STATUSES, default_path
from hdad.control.client import call
from hdad.errors import ControlError, ExitStatus, HdadError, LappedError

MEMORY_S = 0.5  # how long hdactl paths waits for a daemon to say since when paths are as they are
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
            output.line(text)


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
    from hdad.cli.status import page

    def looks() -> Iterator[Any]:
        while True:
            yield context.call("status")
            time.sleep(interval)

    if watch:
        output.watch(looks(), (lambda found: found) if context.is_json else None, page)
        return
    found = context.call("status")
    if context.is_json:
        output.print_json(found)
    else:
        output.console.print(page(found))


@cli.command()
@click.option("--once", is_flag=True, help="One picture, of two looks --interval apart, and end; for scripts, with --json.")
@click.option("--interval", default=1.0, show_default=True, help="Seconds between two looks.")
@click.pass_obj
def top(context: Context, once: bool, interval: float) -> None:
    """The whole flow, live: streams, workers, links, writer, device; rates, lag and history. q ends it, space stops the picture."""
    from hdad.cli import top as live

    def ask() -> dict[str, Any]:
        found: dict[str, Any] = context.call("status")
        return found

    console = output.console
    if once or context.is_json or not console.is_terminal:
        flow = live.once(console, ask, interval)
        if context.is_json:
            output.print_json(flow.as_dict())
        else:
            width, height = console.size if console.is_terminal or "COLUMNS" in os.environ else (100, 60)
            console.print(live.screen(flow, width, height, live.blocks_for(console)))
        return
    live.watch(console, ask, interval)


@cli.command()
@click.option("--interval", default=0.5, show_default=True, help="Seconds between the two looks that rates are made of.")
@click.pass_obj
def cluster(context: Context, interval: float) -> None:
    """Hosts, roles, links (round trip, rate, credit, last error), who is the writer since when and why, lanes by host."""
    from hdad.cli.cluster import cluster_of, page
    from hdad.cli.top import once

    found = cluster_of(once(output.console, lambda: context.call("status"), interval))
    if context.is_json:
        output.print_json(found)
    else:
        output.console.print(page(found))


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


@cli.command()
@click.argument("device", required=False)
@click.option("--config", "-c", "config_path", default=default_path, help="Configuration that names the device, if none is given.")
@click.option("--watch", "-w", is_flag=True, help="Again and again, until ^C: with since when, and errors that rise.")
@click.option("--interval", default=1.0, show_default=True, help="Seconds between two looks of --watch.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object a look.")
@click.option("--capture", "into", metavar="FOLDER", help="Write down what was read, for a report, into a new folder.")
@click.option("--from", "folder", default="", metavar="FOLDER", help="Read what --capture wrote, instead of this machine.")
@click.pass_obj
def paths(
    context: Context, device: str | None, config_path: str, watch: bool, interval: float, is_json: bool, into: str | None, folder: str
) -> None:
    """The device's paths, adapters and target ports: state, ALUA, errors, and what to do. Needs no daemon; answers within --timeout.

    Status 13 if something is wrong that stops writes or would with one more fault.
    """
    from hdad.cli.paths import as_json, looks, page
    from hdad.config import load
    from hdad.fabric.capture import capture, recorded_sources
    from hdad.fabric.health import Expectations
    from hdad.fabric.survey import live_sources
    from hdad.supervise.paths import expectations

    config = None if device else load(config_path)
    expected = expectations(config) if config is not None else Expectations()
    name = device or (config.log.device if config is not None else "")

    def memory() -> dict[str, Any] | None:
        try:
            found = call(context.socket, "status", timeout_s=MEMORY_S) if not folder else {}
        except ControlError:  # no daemon, or none that answers now: then nobody remembers
            return None
        return found.get("paths")

    found = looks(name, expected, folder, context.timeout_s, interval, memory)
    is_json = is_json or context.is_json
    if into:
        try:
            capture(name, recorded_sources(folder) if folder else live_sources(timeout_s=context.timeout_s), into)
        except OSError as error:
            raise HdadError(f"--capture {into}: {error.strerror}; it takes a new folder in one that may be written") from error
    if not watch:
        look = next(found)
        output.print_json(as_json(look)) if is_json else output.console.print(page(look))
        if any(verdict.level == "error" for verdict in look.verdicts):
            sys.exit(ExitStatus.FINDINGS)
    else:
        output.watch(found, as_json if is_json else None, page)


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


@cli.group()
def writer() -> None:
    """Which host writes the log: a planned move between hosts."""


def _move(context: Context, method: str, wanted: str, timeout_s: float) -> dict[str, Any]:
    """Ask, wait for the role, and then for who is the writer. Raises HdadError at the deadline."""
    began = time.monotonic()
    context.call(method)
    while True:
        node: dict[str, Any] = context.call("status")["node"]
        if node["role"] == wanted and (method == "promote" or node["writer"].get("is_serving") or time.monotonic() - began > 2):
            return {"role": wanted, "writer": node["writer"], "took_ms": round((time.monotonic() - began) * 1000)}
        if time.monotonic() - began > timeout_s:
            raise HdadError(f"this host is {node['role']} after {timeout_s:g} s, not {wanted}; see hdactl status for alarms")
        time.sleep(0.01)


@writer.command()
@click.option("--within", default=30.0, show_default=True, help="Seconds until it counts as failed.")
@click.pass_obj
def promote(context: Context, within: float) -> None:
    """Make this standby the writer: at once if the log is released, else it asks the writer to release it."""
    result = _move(context, "promote", "writer", within)
    context.show(result, f"this host is the writer; it took {result['took_ms']} ms")


@writer.command()
@click.option("--within", default=30.0, show_default=True, help="Seconds until it counts as failed.")
@click.pass_obj
def demote(context: Context, within: float) -> None:
    """Release the log to whichever host stands by, and stand by. If none takes it, this host does after the takeover timeout."""
    result = _move(context, "demote", "standby", within)
    found = result["writer"]
    now = f"{found['contact']} is the writer" if found.get("is_serving") else "no other host has taken the log yet"
    context.show(result, f"this host stands by, {now}; it took {result['took_ms']} ms")


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
            output.line(f"{finding.subject}: {finding.text}")
            if finding.remedy:
                output.line(f"     -> {finding.remedy}")
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
        output.line(f"hdactl: {error}", is_error=True)
        hint = getattr(error, "hint", "")
        if isinstance(error, LappedError):
            hint = f"Read on with --from {error.oldest_lsn}"
        if hint:
            output.line(hint, is_error=True)
        sys.exit(error.status)
