"""The client as it is installed, and a broker."""

import pytest
from conformance.packages import built_typescript
from daimon_email.testing import local_broker
from typescript_programs import fill_workshop

__all__ = ["built", "local_broker", "workshop"]


@pytest.fixture(scope="session")
def built():
    """The folder of the package."""
    return built_typescript()


@pytest.fixture(scope="session")
def workshop(built, tmp_path_factory):
    """A folder in which the package is installed, with all snippets that are printed somewhere."""
    folder = tmp_path_factory.mktemp("printed")
    fill_workshop(folder)
    return folder
