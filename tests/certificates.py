"""Certificates for tests of TLS: an authority, files that it has signed, and a client's trust in it."""

import ssl
from pathlib import Path

import trustme
from trustme import CA

from broker import ServerConfig

NAMES = ("localhost", "127.0.0.1")


class Authority:
    """Signs certificates for this host into a folder."""

    def __init__(self, folder: Path) -> None:
        self._ca = CA()
        self._folder = folder
        self.path = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.path)

    def sign(self, name: str = "server") -> ServerConfig:
        """The settings that name a new certificate and its key, which overwrite those of the same name."""
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        made: trustme.LeafCert = self._ca.issue_cert(*NAMES)
        certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        made.private_key_pem.write_to_path(key)
        return ServerConfig(tls_certificate=str(certificate), tls_key=str(key))

    def trust(self) -> ssl.SSLContext:
        """What a client that trusts this authority shakes hands with."""
        return ssl.create_default_context(cafile=str(self.path))
