"""The client for daimon.email's event stream, on asyncio and on trio: the public names, and nothing else."""

from .client import DaimonWebSocket
from .errors import CommandError, ConnectionEndedError, DaimonError, OverflowingError, TimedOutError
from .events import Account, Bounce, Complaint, Event, Fields, Gap, Message
from .keeping import CursorStore, FileStore, Kept
from .leases import Lease
from .waiting import Found
from .webhooks import BadSignatureError, is_processed, processed, verify

__all__ = [
    "Account",
    "BadSignatureError",
    "Bounce",
    "CommandError",
    "Complaint",
    "ConnectionEndedError",
    "CursorStore",
    "DaimonError",
    "DaimonWebSocket",
    "Event",
    "Fields",
    "FileStore",
    "Found",
    "Gap",
    "Kept",
    "Lease",
    "Message",
    "OverflowingError",
    "TimedOutError",
    "is_processed",
    "processed",
    "verify",
]
