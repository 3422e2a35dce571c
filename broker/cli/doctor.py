"""`broker doctor`: what is wrong between here and a running broker, in sentences."""

import ssl
import sys

import click
import msgspec
import trio

from ..protocol.names import InboxId
from ..protocol.wording import located
from .examining import Patient, examine
from .findings import Finding, exit_code, lines_of
from .lines import plain
from .options import (
    BrokerUrl,
    Seconds,
    UsageError,
    ca_file_option,
    ended_by_people,
    json_option,
    key_option,
    print_json,
    print_out,
    url_option,
)
from .probing import Place


def _inbox(context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    try:
        return None if text is None else msgspec.convert(text, InboxId)
    except msgspec.ValidationError as error:
        raise UsageError(located(str(error), "--inbox")) from None


@click.command()
@url_option
@ca_file_option
@key_option
@click.option(
    "--inbox",
    callback=_inbox,
    help="Where to publish probes to; left out: an inbox of the key, or `broker_doctor`.",
)
@click.option(
    "--samples",
    type=click.IntRange(0, 1_000),
    default=50,
    show_default=True,
    help="How many probes to publish; 0: none.",
)
@click.option(
    "--idle",
    "idle_seconds",
    type=Seconds(min=0),
    default=0,
    metavar="SECONDS",
    help="Leave a connection quiet for so long, too: longer than the idle time of a proxy in between.",
)
@json_option
def doctor(
    url: BrokerUrl,
    trust: ssl.SSLContext | None,
    key: str,
    inbox: str | None,
    samples: int,
    idle_seconds: float,
    as_json: bool,
) -> None:
    """Find out what is wrong.

    Looks at a running broker as a client would: whether it is reached, what the key may, clocks, delays, replay after a
    cut, what a proxy in between does. Says what is wrong and what to do; the exit code names the first problem.

    With a key that may publish it publishes probes (doctor.probe) to one inbox.
    """
    patient = Patient(Place(url.http, trust), url.websocket, key, inbox, idle_seconds, samples)
    findings: list[Finding] = []

    def tell(finding: Finding) -> None:
        findings.append(finding)
        if not as_json:
            print_out("\n".join(plain(line) for line in lines_of(finding)))

    with ended_by_people():
        trio.run(examine, patient, tell)
    code = exit_code(findings)
    if as_json:
        print_json({"url": url.http, "exit_code": code, "findings": msgspec.to_builtins(findings)})
    sys.exit(code)
