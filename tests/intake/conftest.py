"""What the tests of the way in share: an engine that must wait, in the place of the one in memory."""

import pytest
from logs import WaitingEngine

import broker.broker


@pytest.fixture
def engines(monkeypatch):
    """The engines of the brokers made from now on: each must wait."""
    made = []

    def make(*args):
        made.append(WaitingEngine(*args))
        return made[-1]

    monkeypatch.setattr(broker.broker, "make_engine", make)
    return made
