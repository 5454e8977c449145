"""TLS of the receivers: certificate, key and the clients' authority, from files."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanloop_collector.errors import TlsError


@dataclass(frozen=True)
class Tls:
    """A server's side of TLS. The files are read once: restart the collector after a renewal.

    Args:
        certificate: PEM file with the certificate and those between it and the authority.
        key: PEM file with its key, not encrypted.
        client_ca: PEM file with the authority of client certificates, which are then demanded; None: they are not.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @classmethod
    def of(cls, certificate: Path | None, key: Path | None, client_ca: Path | None) -> Tls | None:
        """What the options say; None without any of them.

        Raises:
            TlsError: some are missing, or a file cannot be used.
        """
        if certificate is None and key is None and client_ca is None:
            return None
        if certificate is None or key is None:
            raise TlsError("TLS needs a certificate and its key", "give both: --tls-cert FILE --tls-key FILE")
        tls = cls(certificate, key, client_ca)
        tls.context()  # what is wrong with the files is said before anything is started
        return tls

    def context(self) -> ssl.SSLContext:
        """For the HTTP receiver.

        Raises:
            TlsError: a file cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        for path in (self.certificate, self.key, self.client_ca):
            if path is not None:
                _read(path)
        try:
            # A key that is encrypted would be asked for at the terminal.
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            raise TlsError(
                f"{self.certificate} and {self.key} are no certificate and its key: {error}",
                "both are PEM files, the key is not encrypted and belongs to the first certificate of the file",
            ) from error
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError as error:
                raise TlsError(
                    f"{self.client_ca} holds no certificate: {error}", "name a PEM file: --tls-client-ca FILE"
                ) from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def for_grpc(self) -> Any:
        """For the gRPC receiver."""
        import grpc

        authority = None if self.client_ca is None else _read(self.client_ca)
        return grpc.ssl_server_credentials(
            [(_read(self.key), _read(self.certificate))],
            root_certificates=authority,
            require_client_auth=authority is not None,
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(
            f"{path} cannot be read: {error.strerror}", "check the path, and that this user may read it"
        ) from error


def _no_password() -> str:
    raise ValueError("the key is encrypted")
