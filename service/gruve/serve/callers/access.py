"""Who may call which method: one table, and the check of a call's credentials against it.

A method without an entry is refused to every caller. API keys and JSON Web Tokens are turned into identities elsewhere.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from gruve.errors import PermissionDenied, Unauthenticated
from gruve.serve.callers.api_keys import KEY_PREFIX, ApiKeys
from gruve.serve.callers.identity import MAX_TENANT_CHARACTERS, Identity, Role, is_tenant
from gruve.serve.callers.web_tokens import WebTokens

OPEN = None
"""No credentials are needed."""
METHODS: Mapping[str, Mapping[str, Role | None]] = {
    "grpc.health.v1.Health": {"Check": OPEN, "List": OPEN, "Watch": OPEN},
    "gruve.v1.GenerationService": {
        "Generate": Role.USE,
        "Converse": Role.USE,
        "StartConversation": Role.USE,
        "Control": Role.USE,
        "Score": Role.USE,
    },
    "gruve.v1.SessionService": {
        "CreateSession": Role.USE,
        "GetSession": Role.USE,
        "ListSessions": Role.USE,
        "DeleteSession": Role.USE,
        "ForkSession": Role.USE,
        "RewindSession": Role.USE,
        "ExportSession": Role.USE,
        "ImportSession": Role.USE,
    },
    "gruve.v1.ModelService": {
        "ListModels": Role.USE,
        "GetModel": Role.USE,
        "Tokenize": Role.USE,
        "Detokenize": Role.USE,
        "ReloadModel": Role.ADMIN,
    },
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": Role.USE},
    "grpc.channelz.v1.Channelz": {
        "GetTopChannels": Role.ADMIN,
        "GetServers": Role.ADMIN,
        "GetServer": Role.ADMIN,
        "GetServerSockets": Role.ADMIN,
        "GetChannel": Role.ADMIN,
        "GetSubchannel": Role.ADMIN,
        "GetSocket": Role.ADMIN,
    },
}
"""The role that each method needs, by service."""
ROLES: Mapping[str, Role | None] = {
    f"/{service}/{name}": role for service, methods in METHODS.items() for name, role in methods.items()
}
SCHEME = "bearer "
ACTS_FOR = "gruve-tenant"
"""The metadata in which an admin names the tenant whose sessions the call is to use."""


@dataclasses.dataclass(frozen=True, slots=True)
class AccessConfig:
    """What callers are identified by. With neither file the server does not authenticate."""

    keys: Path | None = None
    """The file of API keys."""
    jwks: Path | None = None
    """The public keys of the tokens' issuer; needs `jwt_issuer` and `jwt_audience`."""
    jwt_issuer: str = ""
    jwt_audience: str = ""

    @property
    def authenticates(self) -> bool:
        """Whether calls need credentials."""
        return self.keys is not None or self.jwks is not None


class Access:
    """Identifies callers by the API keys and the tokens that a server accepts."""

    def __init__(self, config: AccessConfig, *, clock: Callable[[], float] = time.time) -> None:
        """Reads the files. `clock` gives the Unix time. Raises `CredentialsBroken`."""
        self._keys = None if config.keys is None else ApiKeys(config.keys, clock=clock)
        self._tokens = (
            None if config.jwks is None else WebTokens(config.jwks, config.jwt_issuer, config.jwt_audience, clock=clock)
        )

    def check(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Identity | None:
        """The identity of a call; None if the method is open to everybody.

        Raises `Unauthenticated`, which never says what is wrong with the credentials, and `PermissionDenied`.
        """
        metadata = tuple(metadata)
        needed = ROLES.get(method)
        if method in ROLES and needed is OPEN:
            return None
        identity = self._identify(metadata)
        if identity is None:
            raise Unauthenticated("the call has no valid credentials; send an API key or a token as authorization")
        if needed is None:
            raise PermissionDenied("no role allows this call")
        if identity.role < needed:
            raise PermissionDenied(
                f"the caller's role is {identity.role.name.lower()}; this call needs {needed.name.lower()}"
            )
        return _acting(identity, [value for name, value in metadata if name == ACTS_FOR])

    def _identify(self, metadata: Iterable[tuple[str, str | bytes]]) -> Identity | None:
        given = [value for name, value in metadata if name == "authorization"]
        if len(given) != 1 or not isinstance(given[0], str) or given[0][: len(SCHEME)].lower() != SCHEME:
            return None
        credential = given[0][len(SCHEME) :].strip()
        if credential.startswith(KEY_PREFIX):
            return self._keys.identify(credential) if self._keys is not None else None
        return self._tokens.identify(credential) if self._tokens is not None else None


def _acting(identity: Identity, tenants: list[str | bytes]) -> Identity:
    """The identity for the tenant that the call names; only an admin may name another than its own."""
    if not tenants:
        return identity
    tenant = tenants[0]
    if len(tenants) > 1 or not isinstance(tenant, str) or not is_tenant(tenant):
        given = ", ".join(map(repr, tenants))[:100]
        raise PermissionDenied(f"{ACTS_FOR} is {given}; must be one name of 1 to {MAX_TENANT_CHARACTERS} characters")
    if tenant != identity.tenant and identity.role < Role.ADMIN:
        raise PermissionDenied(
            f"{ACTS_FOR} is {tenant!r}; the role {identity.role.name.lower()} is for the caller's own tenant alone"
        )
    return dataclasses.replace(identity, acts_for=tenant)
