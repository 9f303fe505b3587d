"""Serve the page with gradio, with checks of the Host and Origin headers."""

import os
import resource
import signal
import sys
import tempfile
from pathlib import Path

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from vit_jax.demo import access
from vit_jax.figures.catalog import Catalog

FOLDER = Path(__file__).parent
MAX_OPEN_FILES = 8192  # below the maximum of macOS


class RequestFilter:
    """ASGI middleware that rejects cross-origin requests and large request bodies.

    Gradio relies on the browser to block foreign origins, which still delivers the request, and it
    limits the size of files but not of JSON.
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        app = self.app
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            length = int(headers.get("content-length", 0))
            if origin and origin.partition("://")[2] != headers.get("host"):
                app = PlainTextResponse("cross-origin requests are not allowed", 403)
            elif length > access.MAX_REQUEST_BYTES or "transfer-encoding" in headers:
                app = PlainTextResponse("request body too large", 413)
        await app(scope, receive, send)


def launch(models, lang, host, port, auth=None):
    """Serve the page from a background thread.

    Args:
      models: one or two `inference.LoadedModel`s.
      lang: language of the page, "en" or "ko".
      host: address to listen on.
      port: a free port.
      auth: [(user, password)]; None: no login.

    Returns:
      The running gr.Blocks, with `local_url` and `close()`.
    """
    import gradio as gr

    from vit_jax.demo.page import Page

    theme = gr.themes.Default(primary_hue="blue").set(
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"
    )
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=access.allowed_hosts(host))
    # Use Blocks.launch: a mounted app does not check that input files were uploaded.
    blocks = Page(models, Catalog("demo", lang)).build()
    blocks.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        auth=auth,
        max_file_size=access.MAX_FILE_BYTES,
        state_session_capacity=8,  # sessions whose image is kept
        app_kwargs={"middleware": [trusted, Middleware(RequestFilter)]},
        prevent_thread_lock=True,
        share=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        quiet=True,
        theme=theme,
        css_paths=FOLDER / "style.css",
        head=f'<script>document.documentElement.lang = "{lang}";</script>',
        head_paths=FOLDER / "head.html",
    )
    return blocks


def raise_open_files():
    """Raise the soft limit of open files: each connection that a client leaves open needs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def serve(models, lang, host, port, auth=None):
    """Serve the page until the process is interrupted; see `launch` for the arguments."""
    raise_open_files()
    # The default handler of SIGTERM would not delete the uploads.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with tempfile.TemporaryDirectory(prefix="vit_jax-demo-") as folder:
        # Gradio reads these variables on import.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        blocks = launch(models, lang, host, port, auth)
        print(blocks.local_url, flush=True)
        blocks.block_thread()
