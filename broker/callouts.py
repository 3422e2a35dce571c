"""Opening the ways to the operator's API that a configuration asks for."""

from contextlib import AsyncExitStack
from typing import Literal

from .callout import Callout, open_callout
from .config import CalloutConfig, Config
from .tracing import Tracing


async def open_callout_of(
    stack: AsyncExitStack, config: Config, name: Literal["access", "commands"], tracing: Tracing | None
) -> Callout | None:
    """Open what a section asks for, until the stack ends; None if it asks for nothing."""
    section: CalloutConfig = getattr(config, name)
    if section.url is None or section.secret is None:
        return None
    opening = open_callout(section.url, section.secret, section.timeout_seconds, name, tracing)
    return await stack.enter_async_context(opening)
