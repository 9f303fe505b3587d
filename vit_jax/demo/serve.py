"""The page on a port."""

import os
import signal
import socket
import sys
import tempfile

from vit_jax.demo import guard, seen
from vit_jax.demo.words import Words
from vit_jax.errors import UserError

REQUEST = seen.MAX_FILE + 1_000_000  # bytes: a picture and what gradio puts around it
CONNECTIONS = 64
FONTS = ("system-ui", "Segoe UI", "Roboto", "Noto Sans", "Noto Sans KR", "Noto Sans CJK KR")
FONTS += ("Apple SD Gothic Neo", "Malgun Gothic", "NanumGothic", "sans-serif")
MONO = ("ui-monospace", "Consolas", "monospace")
CSS = """
.gradio-container { max-width: 1280px !important; }
:lang(ko) { word-break: keep-all; }
#intro h1 { font-size: 1.5rem; margin: 0; }
#picture img { width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated; }
#status [role=alert] { border-left: 4px solid #d55e00; padding-left: .6rem; font-weight: 600; }
[id^=drawing] .image-container { padding-top: 2.2rem; }
.prose table { width: 100%; border: 0; font-variant-numeric: tabular-nums; }
.prose caption { text-align: left; font-weight: 600; padding-bottom: .2rem; }
.prose caption small { font-weight: 400; }
.prose table tr :is(th, td) { border: 0; padding: .2rem .6rem .2rem 0; text-align: left; }
.prose table tr { border: 0; border-top: 1px solid var(--border-color-primary); }
.prose table thead tr { border: 0; }
.prose tbody th { font-weight: 400; overflow-wrap: anywhere; width: 45%; }
.prose thead th { font-size: .8rem; font-weight: 400; }
.prose table tr :is(th, td):last-child { text-align: right; padding-right: 0; width: 5rem; }
.bar i { display: block; height: .8rem; min-width: 1px; border-radius: 2px;
  background: var(--color-accent); }
"""
# Gradio's own labels are in the browser's language; the page's is the one it was started with.
# And Ctrl-V is to do what gradio's button for pasting does.
SCRIPT = """<script>
for (const [key, value] of [["language", "{lang}"], ["languages", ["{lang}"]]])
  Object.defineProperty(navigator, key, {{ get: () => value }});
addEventListener("paste", (event) => {{
  const input = document.querySelector("#picture input[type=file]");
  const files = [...event.clipboardData.files].filter((f) => f.type.startsWith("image/"));
  if (!input || !files.length) return;
  const list = new DataTransfer();
  list.items.add(files[0]);
  input.files = list.files;
  input.dispatchEvent(new Event("change", {{ bubbles: true }}));
}});
</script>"""


class Begin:
    """Puts the script before gradio's own, which its option `head` does not, and says the language.

    An ASGI application around another one.
    """

    def __init__(self, app, lang):
        self.app = app
        self.lang = b'lang="%s"' % lang.encode()
        self.script = b"<head>" + SCRIPT.format(lang=lang).encode()

    async def __call__(self, scope, receive, send):
        if scope.get("path") != "/":
            return await self.app(scope, receive, send)
        start, parts = {}, []

        async def change(message):
            if message["type"] == "http.response.start":
                start.update(message)
                return
            parts.append(message.get("body", b""))
            if message.get("more_body"):
                return
            body = b"".join(parts).replace(b'lang="en"', self.lang, 1)
            body = body.replace(b"<head>", self.script, 1)
            kept = [pair for pair in start["headers"] if pair[0] != b"content-length"]
            length = (b"content-length", str(len(body)).encode())
            await send(start | {"headers": [*kept, length]})
            await send({"type": "http.response.body", "body": body})

        headers = [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]
        return await self.app(scope | {"headers": headers}, receive, change)


def bind(host, port):
    """A listening socket. Raises UserError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        cause = getattr(error, "strerror", None) or error
        raise UserError(f"--host={host} --port={port}: {cause}; take another one") from None


def serve(models, lang, listening, host, token):
    """Serves the page until it is interrupted."""
    with tempfile.TemporaryDirectory(prefix="vit_jax-demo-") as folder:
        # Before gradio is imported: it reads them then. Pictures go when the page does.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        os.environ |= {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
        import uvicorn

        say = Words(lang)
        app = Begin(application(models, say), lang)
        hosts = {"127.0.0.1", "localhost", "::1", host} if guard.is_loopback(host) else None
        app = guard.Guard(app, say, hosts=hosts, token=token, largest=REQUEST)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        name = f"[{host}]" if ":" in host else host
        print(f"http://{name}:{listening.getsockname()[1]}", flush=True)
        # What ends the server would end the process with it, and leave the folder behind.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        uvicorn.Server(config).run(sockets=[listening])


def application(models, say):
    """The page as an ASGI application."""
    import gradio as gr
    from fastapi import FastAPI

    from vit_jax.demo.page import Page

    theme = gr.themes.Default(primary_hue="blue", font=FONTS, font_mono=MONO).set(
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"
    )
    return gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        Page(models, say).build(),
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=seen.MAX_FILE,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme,
        css=CSS,
    )
