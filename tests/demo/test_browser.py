"""Tests of the demo in Chromium."""

import contextlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vit_jax.demo import access

pytestmark = pytest.mark.slow
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if CHROMIUM else ["chromium"]
if MISSING:
    pytest.skip(f"not installed: {', '.join(MISSING)}", allow_module_level=True)
TIMEOUT = 240  # seconds, on a busy machine
PASTE = """bytes => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], "pasted.png", { type: "image/png" }));
  document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
}"""
POST = """url => fetch(url + "/gradio_api/upload", { method: "POST", body: new FormData() })
  .then(response => response.status, () => "blocked")"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, train_digits):
    """A run of a small model on the digits for 8 steps."""
    return train_digits(tmp_path_factory.mktemp("run"), 8, depth=2, width=16, mlp_dim=32)


@contextlib.contextmanager
def serving(*flags, **environment):
    """Serve the page; yield its URL. SIGTERM ends the server with exit code 0."""
    command = [sys.executable, "-m", "vit_jax.tools.demo", "--port=0", *map(str, flags)]
    env = os.environ | environment
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        yield process.stdout.readline().strip().rstrip("/")
    finally:
        process.terminate()
        assert process.wait(TIMEOUT) == 0
        process.stdout.close()


@contextlib.contextmanager
def browsing(**options):
    """Open a Chromium page; `page.requested` collects the URLs that it requests."""
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--host-resolver-rules=MAP evil.example 127.0.0.1"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = browser.new_page(**options)
        page.set_default_timeout(1000 * TIMEOUT)
        page.requested = []
        page.dialogs = []
        page.on("request", lambda request: page.requested.append(request.url))
        page.on("dialog", lambda dialog: (page.dialogs.append(dialog.message), dialog.dismiss()))
        yield page
        browser.close()


def upload(page, name, content):
    file = dict(name=name, mimeType="image/png", buffer=content)
    page.set_input_files("#picture input[type=file]", file)


def wait_for_change(page, act, caption, i=0):
    """Call `act`, then wait until drawing i changes and its caption contains `caption`."""
    before = page.locator(f"#drawing{i} img").get_attribute("src")
    act()
    page.locator(f"#caption{i}", has_text=caption).wait_for()
    page.wait_for_function(
        "([i, src]) => document.querySelector(`#drawing${i} img`).src != src", arg=[i, before]
    )


@pytest.fixture
def digit():
    """A PNG of the digit 1, 40 x 40 pixels."""
    file = io.BytesIO()
    pixels = np.zeros((40, 40), np.uint8)
    pixels[5:35, 17:23] = 255
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_page_explains_an_uploaded_image(workdir, digit):
    with serving(f"--workdir={workdir}") as url, browsing() as page:
        page.goto(url)
        page.locator("#status", has_text="No image yet").wait_for()
        upload(page, "one.png", digit)
        page.locator("#top0 table").wait_for()
        assert page.locator("#top0 tbody tr").count() == 5
        assert page.locator("#lens0 tbody tr").count() == 2  # layers
        page.locator("#caption0", has_text="Layer 2 of 2 · mean of 4 heads").wait_for()
        page.locator("#drawing0 img").wait_for()

        layer = page.locator("#layer input[type=range]")
        wait_for_change(page, lambda: layer.press("ArrowLeft"), "Layer 1 of 2")
        wait_for_change(page, page.locator("#heads label", has_text="1").click, "head 1")
        box = page.locator("#drawing0 img").bounding_box()
        position = dict(x=box["width"] * 0.6, y=box["height"] * 0.3)
        click = page.locator("#drawing0 img").click
        wait_for_change(page, lambda: click(position=position), "patch at row 2, column 3")
        row = page.locator("#row input")
        assert row.input_value() == "2" and page.locator("#query input[value=patch]").is_checked()
        wait_for_change(page, lambda: (row.fill("4"), row.press("Enter")), "row 4, column 3")
        smooth = page.locator("#interpolation label", has_text="bilinear")
        wait_for_change(page, smooth.click, "row 4, column 3")
        rollout = page.locator("#heads label", has_text="rollout")
        wait_for_change(page, rollout.click, "rollout up to this layer")
        larger = page.locator("#resolution label", has_text="16 × 16")
        wait_for_change(page, larger.click, "image 16 × 16, 8 × 8 patches")

        upload(page, "<img src=x onerror=alert(1)>.png", b"no image")
        page.locator("#status [role=alert]", has_text="not a JPEG, PNG").wait_for()
        page.locator("#drawing0 img").wait_for(state="detached")
        assert page.locator("#top0 table, #lens0 table").count() == 0
        assert "Traceback" not in page.content() and not page.dialogs
        upload(page, "large.png", digit + bytes(21 * 2**20))
        page.get_by_text("exceed the maximum").first.wait_for()
        page.evaluate(PASTE, list(digit))
        page.locator("#top0 table").wait_for()
        assert all(requested.startswith((url, "data:", "blob:")) for requested in page.requested)


def test_korean_page_of_two_models_with_login(workdir, digit, tmp_path):
    file = tmp_path / "auth"
    file.write_text("ann:secret\n")
    flags = [f"--workdir={workdir}", f"--against={workdir}", "--lang=ko"]
    flags += ["--host=0.0.0.0", f"--auth_file={file}"]
    with serving(*flags) as url, browsing(locale="ko-KR") as page:
        page.goto(url.replace("0.0.0.0", "127.0.0.1").replace("localhost", "127.0.0.1"))
        user, password = page.locator("input").first, page.locator("input[type=password]")
        user.fill("ann")
        password.fill("secret2")
        with page.expect_response(lambda response: "/login" in response.url) as rejected:
            password.press("Enter")
        assert rejected.value.status == 400 and page.locator("#picture").count() == 0
        user.fill("ann")  # gradio clears both fields
        password.fill("secret")
        password.press("Enter")
        page.locator("#status", has_text="아직 이미지가 없습니다").wait_for()
        assert page.evaluate("document.documentElement.lang") == "ko"
        upload(page, "one.png", digit)
        page.locator("#top1 table").wait_for()
        page.locator("#caption1", has_text="층 2/2").wait_for()
        drawing = page.locator("#drawing1 img")
        drawing.wait_for()
        corner = dict(x=5, y=5)
        wait_for_change(page, lambda: drawing.click(position=corner), "1행 1열 패치", i=0)
        assert "1행 1열" in page.inner_text("#caption1")


def test_other_origins_are_rejected(workdir):
    """Another host name that resolves to the server, and a page of another origin."""
    with serving(f"--workdir={workdir}", **{access.AUTH_VARIABLE: "ann:secret"}) as url:
        with browsing() as page:
            port = url.rpartition(":")[2]
            assert page.goto(f"http://evil.example:{port}").status == 400
            assert page.evaluate(POST, url) == "blocked"
            assert page.goto(url).status == 200
            assert page.evaluate(POST, url) == 401  # rejected for the missing login, not the origin
