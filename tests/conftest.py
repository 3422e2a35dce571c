"""What all tests share: hypothesis profiles, and bare exceptions from async tests."""

import os

import pytest
from hypothesis import HealthCheck, settings

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
