"""What each request passes before any route: token, host, size of the body, headers, log."""

from __future__ import annotations

import hmac
import sys
import time
from collections.abc import Iterable
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipx.serve.counters import Counters
from clipx.serve.limits import Limits, Refused

COOKIE = "clipx_token"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
OWN_PAGES = {"Cross-Origin-Resource-Policy": "same-origin"}  # no page elsewhere shows our pictures


class Guard:
    """An ASGI application around another.

    token: to be given with each request, or None
    hosts: names by which a server without a token may be addressed. A page elsewhere can make its
        own name lead to this machine (DNS rebinding), but the browser sends that name.
    is_shared: whether pages elsewhere may show the pictures
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        hosts: Iterable[str],
        is_shared: bool,
        limits: Limits,
        counters: Counters,
    ) -> None:
        self.app = app
        self.token = token
        self.headers = HEADERS if is_shared else HEADERS | OWN_PAGES
        self.hosts = {host.lower() for host in hosts}
        self.limits = limits
        self.counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 500  # of a request whose handling ends in an exception

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            answer = self._answer(scope)
            if answer is not None:
                await answer(scope, receive, send_guarded)
            else:
                await self.app(scope, self._bounded(receive), send_guarded)
        finally:
            seconds = time.perf_counter() - start
            self._log(scope, status, seconds)

    def _answer(self, scope: Scope) -> Response | None:
        """The response to a request that goes no further."""
        headers = Headers(scope=scope)
        if self.token is None:
            name = _host_name(headers.get("host", ""))
            if name not in self.hosts:
                shown = name.encode("ascii", "backslashreplace").decode()
                return _error(403, f"this server is not called {shown}; start it with --token")
        elif not self._has_token(scope, headers):
            return _error(401, "the token is missing or wrong; open the page with /?token=...")
        elif scope["path"] == "/" and "token" in QueryParams(scope["query_string"]):
            # The browser keeps it in a cookie that no script reads, out of the address bar.
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, self.token, httponly=True, samesite="lax")
            return answer
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:15]) > self.limits.body_bytes:
            return _error(413, self._too_large())
        return None

    def _has_token(self, scope: Scope, headers: Headers) -> bool:
        assert self.token is not None
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [QueryParams(scope["query_string"]).get("token", "")]
        given.append(bearer.strip() if scheme.lower() == "bearer" else "")
        given.append(cookie_parser(headers.get("cookie", "")).get(COOKIE, ""))
        expected = self.token.encode()
        is_right = False
        for token in given:
            # In constant time, and all of them.
            is_right |= hmac.compare_digest(token.encode("utf-8", "replace"), expected)
        return is_right

    def _too_large(self) -> str:
        return f"a request may have {self.limits.body_bytes:,} bytes; send smaller pictures"

    def _bounded(self, receive: Receive) -> Receive:
        """A body without a length is counted as it arrives."""
        num_bytes = 0

        async def receive_bounded() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.limits.body_bytes:
                raise Refused(413, self._too_large())
            return message

        return receive_bounded

    def _log(self, scope: Scope, status: int, seconds: float) -> None:
        # Without the query, which may have the token. The route, not the path, counts: paths are
        # without number.
        route = scope.get("route")
        self.counters.add(route.path if route is not None else "other", status, seconds)
        client = scope["client"][0] if scope.get("client") else "-"
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        path = quote(scope["path"][:200])
        line = f"{stamp} {client} {scope['method']} {path} {status} {1000 * seconds:.0f} ms"
        print(line, file=sys.stderr, flush=True)


def _host_name(host: str) -> str:
    """Without the port: `127.0.0.1:8000`, `[::1]:8000`."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)
