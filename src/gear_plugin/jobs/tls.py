"""
TLS between the parts of a cluster, from the settings tls_cert, tls_key and tls_ca.

With a certificate a machine speaks TLS only, to callers and when it calls.
With a CA it takes callers' certificates of that CA alone, and when it calls
trusts that CA alone (without one: those that the system trusts).
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from gear_plugin.errors import BadConfig


@dataclass(frozen=True, slots=True)
class Tls:
    """A machine's certificate and key, and who signs the others' (None: not said)."""

    cert: Path
    key: Path
    ca: Path | None

    @classmethod
    def of(cls, cert: Path | None, key: Path | None, ca: Path | None) -> Tls | None:
        """
        From the settings; None: no TLS.

        Raises BadConfig when one is missing, cannot be read, or does not fit another.
        """
        if cert is None and key is None and ca is None:
            return None
        if cert is None or key is None:
            missing = "tls_cert" if cert is None else "tls_key"
            raise BadConfig(f"setting {missing!r} is missing; TLS needs a certificate and its key")
        tls = cls(cert, key, ca)
        tls.client_context()
        return tls

    def client_context(self) -> ssl.SSLContext:
        """For calls to others, whose certificates must be for their addresses; raises BadConfig."""
        return self._complete(ssl.Purpose.SERVER_AUTH)

    def server_context(self) -> ssl.SSLContext:
        """For callers, who must show a certificate when there is a CA; raises BadConfig."""
        context = self._complete(ssl.Purpose.CLIENT_AUTH)
        if self.ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _complete(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        for name, path in (("tls_cert", self.cert), ("tls_key", self.key), ("tls_ca", self.ca)):
            try:
                if path is not None:
                    path.open("rb").close()
            except OSError as error:
                raise BadConfig(
                    f"setting {name!r}: cannot read {path}: {error.strerror}"
                ) from error
        try:
            context = ssl.create_default_context(purpose, cafile=self.ca)
        except ssl.SSLError as error:
            raise BadConfig(f"setting 'tls_ca': {self.ca} holds no certificate (PEM)") from error
        try:
            context.load_cert_chain(self.cert, self.key, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None) or str(error)
            raise BadConfig(
                f"settings 'tls_cert' and 'tls_key': {self.cert} and {self.key} are no "
                f"certificate and its key without a password (PEM): {reason}"
            ) from error
        return context


def _no_password() -> str:
    # OpenSSL would ask on the terminal.
    raise ValueError("the key has a password")
