"""Who may see the page, and how much they may send: an ASGI application around another one."""

import asyncio
import hmac
import ipaddress
import secrets
from html import escape
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from vit_jax.errors import UserError

SHORTEST = 16  # characters of a token
FORM = 4096  # bytes of the form with the token
PAUSE = 0.5  # seconds after a wrong one
COOKIE = "vit_jax_demo"
# Gradio's page has scripts and styles within it and makes functions of text; nothing comes from,
# and nothing goes to, any other place.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; form-action 'self'; "
    "base-uri 'self'; frame-ancestors 'none'; object-src 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]


def is_loopback(host):
    """Whether only this machine can reach an address or name that a server is bound to."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_token(host, token):
    """UserError where the page would be open to others, or its token is short."""
    if token is None and not is_loopback(host):
        raise UserError(
            f"--host={host} opens the page to others: pass --token=... of {SHORTEST} characters "
            "or more, which they have to enter"
        )
    if token is not None and len(token) < SHORTEST:
        raise UserError(f"--token has {len(token)} characters; take {SHORTEST} or more")


def same(given, token):
    """Whether two texts are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode(), token.encode())


class Guard:
    """Passes on the requests that may pass.

    hosts: names that a request may call this server by, None: any. A page on another site, whose
    name is made to lead here, so reaches nothing. token: asked for once by a form, after which a
    cookie stands for it. largest: bytes of a request.
    """

    def __init__(self, app, say, *, hosts=None, token=None, largest):
        self.app, self.say, self.hosts = app, say, hosts
        self.token, self.largest = token, largest
        self.ticket = secrets.token_urlsafe(32)  # what the cookie holds

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # there are no websockets in this page
            return None
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        if not self.is_ours(headers):
            return await answer(send, 403, self.say("refused"))
        if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            length = headers.get("content-length", "")
            if not length.isdigit() or int(length) > self.largest:
                return await answer(send, 413, self.say("too_large"))
        if self.token is not None and not self.has_ticket(headers):
            return await self.ask(scope, headers, receive, send)

        async def send_on(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        return await self.app(scope, receive, send_on)

    def is_ours(self, headers):
        """Whether it asks for this server by its name and comes from no other site's page."""
        host = headers.get("host", "")
        try:
            if self.hosts is not None and urlsplit(f"//{host}").hostname not in self.hosts:
                return False
            return "origin" not in headers or urlsplit(headers["origin"]).netloc == host
        except ValueError:  # no address at all
            return False

    def has_ticket(self, headers):
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and same(cookie.value, self.ticket)

    async def ask(self, scope, headers, receive, send):
        """The form, and what it is answered with."""
        if scope["path"] == "/token" and scope["method"] == "POST":
            if int(headers["content-length"]) > FORM:
                return await answer(send, 413, self.say("too_large"))
            body, more = b"", True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                body, more = body + message.get("body", b""), message.get("more_body", False)
            fields = parse_qs(body.decode("utf-8", "replace"))
            if same(fields.get("token", [""])[0], self.token):
                cookie = f"{COOKIE}={self.ticket}; Path=/; HttpOnly; SameSite=Strict"
                extra = [(b"location", b"/"), (b"set-cookie", cookie.encode())]
                return await answer(send, 303, "", extra)
            await asyncio.sleep(PAUSE)
            return await answer(send, 401, self.form(self.say("wrong")))
        return await answer(send, 401, self.form())

    def form(self, wrong=""):
        say = self.say
        return (
            f'<form lang="{say.lang}" method="post" action="/token"><h1>{say("title")}</h1>'
            f'<p role="alert">{escape(wrong)}</p><label for="t">{say("token")}</label> '
            f'<input id="t" name="token" type="password" autocomplete="off" autofocus required> '
            f"<button>{say('enter')}</button><p>{say('token_hint')}</p></form>"
        )


async def answer(send, status, text, extra=()):
    """A page of its own, without scripts."""
    body = (
        '<!doctype html><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        "<style>body{font:16px/1.6 system-ui,'Noto Sans KR','Noto Sans CJK KR',sans-serif;"
        "max-width:30rem;margin:15vh auto;padding:0 1rem;color-scheme:light dark}"
        "input,button{font:inherit;padding:.3rem .6rem}</style>" + text
    ).encode()
    kind = [(b"content-type", b"text/html; charset=utf-8"), (b"cache-control", b"no-store")]
    length = [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    headers = [*kind, *length, *HEADERS, *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
