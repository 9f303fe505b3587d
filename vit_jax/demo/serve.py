"""The web server of the page: gradio's, behind checks of the Host and Origin headers."""

import os
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


class RequestFilter:
    """ASGI middleware that refuses requests of other sites' pages, and bodies that are too large.

    Gradio leaves a foreign Origin to the browser, which sends the request all the same, and limits
    the size of files but not of JSON.
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
                app = PlainTextResponse("requests of other origins are refused", 403)
            elif length > access.MAX_REQUEST_BYTES or "transfer-encoding" in headers:
                app = PlainTextResponse("the request is too large", 413)
        await app(scope, receive, send)


def launch(models, lang, host, port, auth=None):
    """Serve the page from a thread.

    Args:
      models: one or two `inference.LoadedModel`s.
      lang: "en" or "ko".
      host: address to listen on.
      port: a free one.
      auth: [(user, password)], or None to let everyone in.

    Returns:
      The running gr.Blocks: `local_url`, `close()`.
    """
    import gradio as gr

    from vit_jax.demo.page import Page

    theme = gr.themes.Default(primary_hue="blue").set(
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"
    )
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=access.allowed_hosts(host))
    # Blocks.launch, as a mounted app does not check that inputs are files that were uploaded.
    blocks = Page(models, Catalog("demo", lang)).build()
    blocks.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        auth=auth,
        max_file_size=access.MAX_FILE_BYTES,
        state_session_capacity=8,  # visitors whose picture is remembered
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


def serve(models, lang, host, port, auth=None):
    """Serve the page until the process is interrupted; arguments as of `launch`."""
    # Ended by SIGTERM, the process would leave the uploads behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with tempfile.TemporaryDirectory(prefix="vit_jax-demo-") as folder:
        # Gradio reads these when it is imported.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        blocks = launch(models, lang, host, port, auth)
        print(blocks.local_url, flush=True)
        blocks.block_thread()
