"""A program that embeds a broker: a mail system publishes, agents connect, commands are answered, and it ends well.

python embedding.py        # prints its address and a key; Ctrl-C or SIGTERM ends it
"""

import logging
import os
import signal
from dataclasses import dataclass
from functools import partial

import trio

from broker import AccountConfig, Broker, CommandContext, CommandError, Config, KeyConfig, open_broker, serve
from broker.keys import hash_key, new_key

ACCOUNT = "acct_demo"


@dataclass
class Email:
    """Parameters of `send_email`: what does not fit is refused with its path before the handler runs."""

    to: str | list[str]
    subject: str = ""


def register(broker: Broker) -> None:
    """Say who does what agents ask for."""

    @broker.command("send_email", seconds=5)
    async def send_email(email: Email, context: CommandContext) -> dict[str, str | list[str]]:
        if context.inbox_id is None:
            raise CommandError("no_inbox", "Say from which inbox: `inbox_id`")
        # Give the id on to your mailer as its idempotency key: it is the same if the same command is sent again.
        return {"message_id": context.message_id, "from": context.inbox_id, "to": email.to}


async def receive_mail(broker: Broker) -> None:
    """Stand for your mail system: publish what comes in."""
    while True:
        message = {"from": "ada@example.com", "subject": "Hello"}
        event = {"type": "message.received", "inbox_id": "inbox_abc123", "payload": {"message": message}}
        await broker.publish(ACCOUNT, event)
        await trio.sleep(1)


async def log_statistics(broker: Broker) -> None:
    """Say now and then what the broker holds."""
    while True:
        logging.info("%d events published", broker.statistics().published)
        await trio.sleep(60)


async def main() -> None:
    """Run until a signal; then every client gets what is stored, and is told to come back."""
    logging.basicConfig(level=logging.INFO)
    key = new_key()
    account = AccountConfig(id=ACCOUNT, keys=(KeyConfig(id="key_agent", sha256=hash_key(key)),))
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_broker(Config(accounts=(account,))) as broker:
            register(broker)
            # Two nurseries: what publishes ends first, and the server after it has drained.
            async with trio.open_nursery() as serving:
                port = int(os.environ.get("PORT", "8765"))
                [(host, port)] = await serving.start(partial(serve, broker, port=port))
                print(f"http://{host}:{port} {key}", flush=True)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(receive_mail, broker)
                    nursery.start_soon(log_statistics, broker)
                    await anext(signals)
                    nursery.cancel_scope.cancel()
                broker.start_draining()  # `serve` returns when all have been told


if __name__ == "__main__":
    trio.run(main)
