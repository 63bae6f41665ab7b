"""API keys: which tenant a request belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from agentrt.serving.errors import AccessDenied

__all__ = ["DEFAULT_TENANT", "Tenants"]

DEFAULT_TENANT = "default"


class Tenants:
    """Tells the tenant of a request by its API key.

    With no keys set, whatever ``Authorization`` says is ignored: clients always send something.
    """

    def __init__(self, api_keys: Mapping[str, str]) -> None:
        # Looked up by digest, so that the time a lookup takes says nothing about the keys.
        self._by_digest = {_digest(key): tenant for key, tenant in api_keys.items()}

    def tenant(self, headers: Mapping[str, str]) -> str:
        """Return the tenant that the headers (lower-case names) belong to.

        Raises:
            AccessDenied: keys are set, and the request has none of them.
        """
        if not self._by_digest:
            return DEFAULT_TENANT
        tenant = self._by_digest.get(_digest(_key(headers)))
        if tenant is None:
            raise AccessDenied(
                "The request carries no valid API key.",
                remedy="Send 'Authorization: Bearer KEY' with a key from the server's operator.",
            )
        return tenant


def _key(headers: Mapping[str, str]) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key:
        return key.strip()
    return headers.get("x-api-key", "")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
