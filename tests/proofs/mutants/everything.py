"""All mutants, wing by wing."""

from proofs.mutants import (
    commands,
    connection,
    disk,
    fanout,
    keeper,
    keyring,
    log,
    observe,
    queues,
    session,
    slots,
    stream,
    valkey,
    waiting,
    webhooks,
)
from proofs.mutants.mutant import Mutant

WINGS: dict[str, list[Mutant]] = {
    "commands": commands.MUTANTS,
    "connection": connection.MUTANTS,
    "disk": disk.MUTANTS,
    "fanout": fanout.MUTANTS,
    "keeper": keeper.MUTANTS,
    "keyring": keyring.MUTANTS,
    "log": log.MUTANTS,
    "observe": observe.MUTANTS,
    "queues": queues.MUTANTS,
    "session": session.MUTANTS,
    "slots": slots.MUTANTS,
    "stream": stream.MUTANTS,
    "valkey": valkey.MUTANTS,
    "waiting": waiting.MUTANTS,
    "webhooks": webhooks.MUTANTS,
}
"""Each in a module of its own."""

MUTANTS: list[Mutant] = [mutant for wing in WINGS.values() for mutant in wing]
