"""What all tests share: hypothesis profiles, bare exceptions from async tests, and a few fixtures."""

import logging
import os

import pytest
import trio
from hypothesis import HealthCheck, settings
from logs import ArchivingEngine

import broker.broker
import broker.transport.connection
import broker.transport.stream
from broker import Broker

# No deadline for one example: the machines that run this are shared, and a slow example is no bug.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "local")


def _bare(error: BaseException) -> BaseException:
    """Return what stands inside groups of one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call():
    """Take the groups of one off a test's exception.

    pytest-trio runs each test in a nursery, so what the test raises arrives wrapped, and `xfail(raises=…)`
    does not know it again.
    """
    try:
        return (yield)
    except BaseExceptionGroup as group:
        error = _bare(group)
    # Raised outside the handler: the group does not become the context of its own member.
    raise error


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Let what was printed and logged be UTF-8, whatever a test says: it goes to another process."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode("utf-8")) for name, text in report.sections
    ]
    return report


@pytest.fixture
def quick_close(monkeypatch):
    """Let clients that do not answer a Close be gone soon."""
    monkeypatch.setattr(broker.transport.connection, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(broker.transport.stream, "LINGER_SECONDS", 0.2)


@pytest.fixture
def no_errors(caplog):
    """Fail if anything was logged as an error."""
    yield
    # By now the phase is another: `caplog.records` is empty.
    assert not [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.WARNING]


@pytest.fixture
def held_cursor(monkeypatch):
    """Hold openings with `since` until the event is set."""
    gate = trio.Event()

    async def wait(*_):
        await gate.wait()

    monkeypatch.setattr(Broker, "reach", wait)
    return gate


@pytest.fixture
def archives(monkeypatch):
    """Let brokers keep what memory drops, each in an archive that is found here."""
    made = []

    def make(*args):
        engine = ArchivingEngine(*args)
        made.append(engine.archive)
        return engine

    monkeypatch.setattr(broker.broker, "make_engine", make)
    return made
