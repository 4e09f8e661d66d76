"""Tokens: who a request comes from, by its `Authorization` header. Owns nothing else: what a holder may do is the routes'."""

import hashlib
import hmac

from aiohttp import hdrs, web

from shared.errors import Unauthorized


class Tokens:
    """Who may do what. Only the token's SHA-256 is kept."""

    def __init__(self, ops_token: str | None) -> None:
        self._ops = hashlib.sha256(ops_token.encode()).digest() if ops_token else None

    def holder(self, request: web.Request) -> str | None:
        """The name of the token that the request carries, None without one; Unauthorized for one that is not ours."""
        header = request.headers.get(hdrs.AUTHORIZATION)
        if header is None:
            return None
        scheme, _, token = header.partition(" ")
        # Headers may hold any bytes; those that are not UTF-8 come as lone surrogates.
        given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        if scheme.lower() != "bearer" or self._ops is None or not hmac.compare_digest(given, self._ops):
            raise Unauthorized("the token is not valid here")
        return "ops"

    def require(self, request: web.Request) -> str:
        """The holder's name; Unauthorized without a token."""
        holder = self.holder(request)
        if holder is None:
            raise Unauthorized("send `Authorization: Bearer <token>`")
        return holder
