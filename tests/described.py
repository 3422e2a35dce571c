"""The two documents in which the broker describes itself, and what a JSON by one of their schemas is."""

import json
from typing import Any

from jsonschema import Draft202012Validator

from broker.transport.endpoints import route_of
from broker.transport.specs.asyncapi import asyncapi
from broker.transport.specs.openapi import openapi
from broker.version import __version__

Json = dict[str, Any]


def _closed(schema: Any) -> Any:
    """The same document, in which objects with fixed members have no others: so that nothing is said undescribed."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(value) for name, value in schema.items()}
    if closed.get("type") == "object" and "properties" in closed:
        closed["additionalProperties"] = False
    return closed


ASYNCAPI: Json = json.loads(asyncapi(__version__))
OPENAPI: Json = json.loads(openapi(__version__))
_CLOSED: Json = {"asyncapi": _closed(ASYNCAPI), "openapi": _closed(OPENAPI)}


def faults(instance: Any, schema: Json, document: Json) -> list[str]:
    """What is wrong with a JSON by a schema of a document."""
    validator = Draft202012Validator({**schema, "components": document["components"]})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(instance)]


def messages(direction: str) -> list[str]:
    """The messages that the broker sends (`send`, answers among them) or receives (`receive`)."""
    names = []
    for operation in ASYNCAPI["operations"].values():
        if operation["action"] == direction:
            names += operation["messages"]
        elif direction == "send":
            names += operation["reply"]["messages"]
    return [name["$ref"].rpartition("/")[2] for name in names]


def which_of(direction: str, frame: Json) -> list[str]:
    """As which messages a frame is described: what the broker sends, to its last field; else by what is read of it."""
    document = _CLOSED["asyncapi"] if direction == "send" else ASYNCAPI
    return [
        name
        for name in messages(direction)
        if not faults(frame, ASYNCAPI["components"]["messages"][name]["payload"], document)
    ]


def faults_of_answer(method: str, path: str, status: int, body: Any) -> list[str]:
    """What of an HTTP answer is not described; an answer whose status is not described is one fault."""
    responses = OPENAPI["paths"][route_of(path)][method.lower()]["responses"]
    response = responses.get(str(status)) or responses.get("default")
    if response is None:
        return [f"{status} is not described: {body}"]
    return faults(body, response["content"]["application/json"]["schema"], _CLOSED["openapi"])
