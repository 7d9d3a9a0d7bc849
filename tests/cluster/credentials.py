"""Where an API server is and who asks it, read from a kubeconfig."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx


@dataclass(frozen=True)
class Credentials:
    """A URL, the TLS that verifies its server and may carry a client's certificate, and headers with a token."""

    url: str
    tls: ssl.SSLContext = field(repr=False)
    headers: dict[str, str] = field(repr=False)

    @classmethod
    def of(cls, kubeconfig: Path, *, token: str | None = None) -> "Credentials":
        """The user of a kubeconfig, or whoever has a token at the same server."""
        settings = _settings(kubeconfig)
        tls = ssl.create_default_context(cafile=settings.ssl_ca_cert)
        if token is not None:
            return cls(settings.host, tls, {"authorization": f"Bearer {token}"})
        if settings.cert_file:
            tls.load_cert_chain(settings.cert_file, settings.key_file)
        # A token lies under the one name, a user's name and password under the other.
        header = settings.api_key.get("BearerToken") or settings.api_key.get("authorization")
        return cls(settings.host, tls, {"authorization": header} if header else {})

    def client(self) -> httpx.Client:
        """An HTTP client of that server."""
        return httpx.Client(base_url=self.url, verify=self.tls, headers=self.headers, timeout=30)


def _settings(kubeconfig: Path) -> Any:
    from kubernetes.config.kube_config import new_client_from_config  # takes a second to import

    return new_client_from_config(str(kubeconfig)).configuration
