"""TLS by certificate files (RFC 8446, RFC 5246): the certificate, and what one connection does to its bytes.

A `TlsSession` is OpenSSL between two buffers in memory: it opens what was read and seals what is to be written, and
does no I/O of its own. So a stream over TLS is written as any other is, by the fan-out too: its bytes are sealed just
before the kernel gets them.
"""

import ssl
from contextlib import suppress
from typing import Final

from ..config import ServerConfig
from ..errors import ConfigError

SEALED_BYTES: Final = 65_536
"""What is sealed in one step, which is under a tenth of a millisecond."""
_MOST_UNASKED_BYTES: Final = 16_384
"""What OpenSSL may have to say in answer to what it reads (tickets, key updates), until something is written."""


class BadTlsError(Exception):
    """The peer does not speak TLS, or not as it should; the message has OpenSSL's words for it."""


class _EncryptedKeyError(Exception):
    """A key cannot be read without a password."""


def _no_password() -> str:
    raise _EncryptedKeyError


class Certificate:
    """A certificate (with its chain) and its key, from two PEM files that can be read again.

    Raises `ConfigError` that names the file at fault.
    """

    def __init__(self, certificate_path: str, key_path: str) -> None:
        self._paths = certificate_path, key_path
        self.context = self._load()
        """What the next connection's session is made with."""

    def reload(self) -> None:
        """Read the files again, for connections to come. Raises `ConfigError`, and then nothing has changed."""
        self.context = self._load()

    def _load(self) -> ssl.SSLContext:
        certificate_path, key_path = self._paths
        _require_readable("tls_certificate", certificate_path)
        _require_readable("tls_key", key_path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(certificate_path, key_path, _no_password)
        except _EncryptedKeyError:
            raise ConfigError(
                f"`server.tls_key`: {key_path}: the key is encrypted; give one without a password"
            ) from None
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(_fault(certificate_path, key_path, error)) from None
        return context


def certificate_of(config: ServerConfig) -> Certificate | None:
    """Return the certificate that a configuration names, loaded; None: it names none. Raises `ConfigError`."""
    if config.tls_certificate is None or config.tls_key is None:
        return None
    return Certificate(config.tls_certificate, config.tls_key)


def _require_readable(setting: str, path: str) -> None:
    try:
        with open(path, "rb") as file:
            file.read(1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"`server.{setting}`: {path}: {getattr(error, 'strerror', None) or error}") from None


def _fault(certificate_path: str, key_path: str, error: OSError) -> str:
    """Return which of two files cannot be used, and why: OpenSSL does not say which."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certificate_path)
    except (ssl.SSLError, OSError):
        return f"`server.tls_certificate`: {certificate_path}: there is no certificate in PEM form"
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return f"`server.tls_key`: {key_path}: the key is not the certificate's ({certificate_path})"
    if reason in ("EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK", "CA_KEY_TOO_SMALL"):
        return f"`server.tls_certificate`: {certificate_path}: {words_of(error)}"
    return f"`server.tls_key`: {key_path}: there is no key in PEM form"


def words_of(error: OSError) -> str:
    """Return why TLS failed, in OpenSSL's words, without the line of its source."""
    reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
    return str(getattr(error, "verify_message", None) or reason).replace("_", " ").lower()


class TlsSession:
    """The server's side of one connection: sealed bytes in, plain bytes out, and the other way round."""

    __slots__ = ("_incoming", "_object", "_outgoing")

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def feed(self, sealed: bytes) -> None:
        """Take what was read."""
        self._incoming.write(sealed)

    def take_outgoing(self) -> bytes:
        """Return what the handshake, or an alert, has to be sent."""
        return self._outgoing.read()

    def shake_hands(self) -> bool:
        """Go on with the handshake; return whether it is done, else it needs to be fed. Raises `BadTlsError`."""
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise BadTlsError(words_of(error)) from None
        return True

    def open(self, max_bytes: int) -> bytes | None:
        """Return plain bytes, b"" at the peer's end, None if it needs to be fed. Raises `BadTlsError`."""
        try:
            data = self._object.read(max_bytes)
        except ssl.SSLWantReadError:
            data = None
        except ssl.SSLZeroReturnError:
            return b""
        except ssl.SSLError as error:
            raise BadTlsError(words_of(error)) from None
        if self._outgoing.pending > _MOST_UNASKED_BYTES:
            raise BadTlsError("it asks for more than it reads")
        return data

    def seal(self, data: bytes | memoryview) -> bytes:
        """Return ``data``, of `SEALED_BYTES` at most, as it is to be sent, after what else is. Raises `OSError`."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._object.write(rest) :]
        return self._outgoing.read()

    def seal_end(self) -> bytes:
        """Return what says that nothing more will be written (close_notify, RFC 8446 section 6.1)."""
        with suppress(ssl.SSLError):  # it wants the peer's own, which is not waited for
            self._object.unwrap()
        return self._outgoing.read()
