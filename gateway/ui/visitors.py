"""Who looks at the page: their key, sealed in a cookie that no script can read."""

from __future__ import annotations

import base64
import hashlib
import secrets
import zlib
from html import escape
from urllib.parse import parse_qs

from cryptography.fernet import Fernet, InvalidToken
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.ui.client import NO_ANSWER, Gateway, Refusal
from gateway.ui.settings import Settings

COOKIE = "loraline-key"
LONGEST_KEY = 4096
"""Characters; tokens of OpenID providers are long."""

LONGEST_FORM = 3 * LONGEST_KEY

LONGEST_COOKIE = 4096
"""Bytes of a cookie's name and value; browsers keep no longer one, and do not say so."""

CSP = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
"""Gradio runs functions that it gets as text; nothing of the page reaches another host."""

HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Proxies would hold streamed answers back.
    "X-Accel-Buffering": "no",
}

FORM = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Sign in</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<style>body{font:1rem/1.5 system-ui,sans-serif;max-width:26rem;margin:15vh auto;padding:0 1rem}
input,button{font:inherit;width:100%;box-sizing:border-box;padding:.6rem;margin:.3rem 0}</style>
</head><body><main><h1>Sign in</h1>
<p>The gateway knows its visitors by their key. Your operator gives you one.</p>
<form method="post" action="login"><label for="key">Key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button>Sign in</button></form><p role="alert">SENTENCE</p></main></body></html>"""


class Visitors:
    """Seals and opens keys; asks the gateway whether they are valid."""

    def __init__(self, settings: Settings) -> None:
        secret = settings.secret.get_secret_value() if settings.secret else secrets.token_hex(32)
        digest = hashlib.sha256(secret.encode()).digest()
        self.seal = Fernet(base64.urlsafe_b64encode(digest))
        self.seconds = int(settings.signed_in_hours * 3600)

    def key(self, request: Request) -> str | None:
        """The visitor's key; None where none was given, or too long ago."""
        sealed = request.cookies.get(COOKIE, "")
        if not sealed or len(sealed) > LONGEST_COOKIE:
            return None
        try:
            packed = self.seal.decrypt(sealed.encode(), ttl=self.seconds)
            return zlib.decompress(packed).decode()
        except (InvalidToken, ValueError, zlib.error):
            return None

    def sealed(self, key: str) -> str:
        """The key as a cookie's value. A token is longest, and written in letters of six bits."""
        return self.seal.encrypt(zlib.compress(key.encode(), 9)).decode()

    async def sign_in(self, request: Request) -> Response:
        """Accept a key if the gateway does; every other key gets the same sentence."""
        content = b""
        async for piece in request.stream():
            content += piece
            if len(content) > LONGEST_FORM:
                return sign_in_form("That is no key.", 413)
        key = parse_qs(content.decode("utf-8", "replace")).get("key", [""])[0].strip()
        if not key or len(key) > LONGEST_KEY or not key.isascii() or not key.isprintable():
            return sign_in_form("That is no key.", 401)
        sealed = self.sealed(key)
        if len(COOKIE) + len(sealed) > LONGEST_COOKIE:
            return sign_in_form("That key is too long for a browser to keep.", 413)
        try:
            await Gateway(request.app.state.http, key).json("GET", "/info")
        except Refusal as error:
            known = error.status not in (401, 403)
            return sign_in_form(
                error.sentence if known else "The gateway does not know this key.",
                503 if known else 401,
            )
        response = RedirectResponse("./", 303)
        response.set_cookie(
            COOKIE,
            sealed,
            max_age=self.seconds,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response


def sign_in_form(sentence: str = "", status: int = 200) -> Response:
    return HTMLResponse(FORM.replace("SENTENCE", escape(sentence)), status)


def sign_out() -> Response:
    response = RedirectResponse("login", 303)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


class Guard:
    """Lets nobody without a key past the sign-in form, if the gateway asks for keys.

    Browsers ask for a site's icon and manifest without its cookies.
    """

    OPEN = ("/login", "/health", "/favicon.ico", "/manifest.json")

    def __init__(self, app: ASGIApp, visitors: Visitors) -> None:
        self.app = app
        self.visitors = visitors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        request = Request(scope, receive)
        if request.url.path in self.OPEN or self.visitors.key(request):
            await self.app(scope, receive, with_headers)
            return
        asks = await asks_for_keys(request)
        if asks is False:
            await self.app(scope, receive, with_headers)
            return
        answer = turned_away(request, down=asks is None)
        await answer(scope, receive, with_headers)


def turned_away(request: Request, *, down: bool) -> Response:
    if down:
        return Response(f"{NO_ANSWER.format('gateway')}\n", 503, {"Retry-After": "5"}, "text/plain")
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse("/login", 303)
    return Response("Sign in first.\n", 401, None, "text/plain")


async def asks_for_keys(request: Request) -> bool | None:
    """Whether the gateway requires a key; without keys it listens on 127.0.0.1 alone.

    None while it is down: it is asked again at the next request.
    """
    state = request.app.state
    if state.asks_for_keys is None:
        try:
            await Gateway(state.http, None).json("GET", "/info")
            state.asks_for_keys = False
        except Refusal as error:
            if error.status not in (401, 403):
                return None
            state.asks_for_keys = True
    return bool(state.asks_for_keys)
