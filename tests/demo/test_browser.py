"""The page to drop a picture on, as its visitors and others find it, in a browser."""

import contextlib
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from vit_jax import inference, vit
from vit_jax.demo import seen
from vit_jax.demo.words import Words

pytestmark = pytest.mark.slow
TOKEN = "correct horse battery"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
LACKS = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
LACKS += [] if CHROMIUM else ["chromium"]
in_browser = pytest.mark.skipif(bool(LACKS), reason=f"not installed: {', '.join(LACKS)}")
WAIT = 240  # seconds, of a busy machine


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, train_digits):
    """A run on the digits, 8 steps of a small model."""
    return train_digits(tmp_path_factory.mktemp("run"), 8, depth=2, width=16, mlp_dim=32)


@contextlib.contextmanager
def serving(*words):
    """The page's address, while it is served. Nothing of it is left behind."""
    command = [sys.executable, "-m", "vit_jax.tools.demo", "--port=0", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        assert process.wait(WAIT) == 0
        process.stdout.close()


@contextlib.contextmanager
def browsing():
    """A page of Chromium; every address that it asks for is put into `page.asked`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport=dict(width=1280, height=960))
        page.set_default_timeout(1000 * WAIT)
        page.asked, page.dialogs = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("dialog", lambda dialog: (page.dialogs.append(dialog.message), dialog.dismiss()))
        yield page
        browser.close()


PASTE = """bytes => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], "pasted.png", { type: "image/png" }));
  document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
}"""


def upload(page, name, content):
    file = dict(name=name, mimeType="image/png", buffer=content)
    page.set_input_files("#picture input[type=file]", file)


def changed(page, act, text, i=0):
    """Acts, waits for the line beneath drawing i to say `text` -> whether the drawing is new."""
    drawing = page.locator(f"#drawing{i} img")
    before = drawing.get_attribute("src")
    act()
    page.locator(f"#caption{i}", has_text=text).wait_for()
    page.wait_for_function(
        "([i, src]) => document.querySelector(`#drawing${i} img`).src != src", arg=[i, before]
    )
    return drawing.get_attribute("src") != before


def forge(url, picture):
    """What a request that no page would make is answered with."""
    config = json.load(urllib.request.urlopen(url + "/config"))
    event = config["dependencies"][0]  # of a new picture
    props = {c["id"]: c["props"] for c in config["components"]}
    data = [props[i].get("value") for i in event["inputs"]]
    at = [props[i].get("elem_id") for i in event["inputs"]].index("picture")
    data[at] = picture
    join = dict(data=data, fn_index=event["id"], session_hash="forged", event_data=None)
    join = urllib.request.Request(
        url + "/gradio_api/queue/join",
        json.dumps(join).encode(),
        {"content-type": "application/json"},
    )
    urllib.request.urlopen(join).close()
    with urllib.request.urlopen(url + "/gradio_api/queue/data?session_hash=forged") as lines:
        for line in lines:
            if b"process_completed" in line:
                return json.loads(line.removeprefix(b"data: "))


@pytest.fixture
def digit():
    """A PNG of 40 x 40 pixels."""
    file = io.BytesIO()
    pixels = np.zeros((40, 40), np.uint8)
    pixels[5:35, 17:23] = 255
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@in_browser
def test_a_visitor_looks_inside(workdir, digit):
    with serving(f"--workdir={workdir}") as url, browsing() as page:
        page.goto(url)
        page.locator("#status", has_text="No picture yet").wait_for()
        upload(page, "one.png", digit)
        page.locator("#top0 table").wait_for()
        assert page.locator("#top0 tbody tr").count() == 5
        page.locator("#caption0", has_text="Layer 2 of 2 · mean of 4 heads").wait_for()
        page.locator("#drawing0 img").wait_for()

        layer = page.locator("#layer input[type=range]")
        assert changed(page, lambda: layer.press("ArrowLeft"), "Layer 1 of 2")
        head = page.locator("#head input[type=range]")
        assert changed(page, lambda: head.press("ArrowRight"), "head 1 of 0 to 3")
        assert page.locator("#heads input[value=one]").is_checked()
        box = page.locator("#drawing0 img").bounding_box()
        at = dict(x=box["width"] * 0.6, y=box["height"] * 0.3)
        assert changed(
            page,
            lambda: page.locator("#drawing0 img").click(position=at),
            "from the patch in row 2, column 3",
        )
        assert page.locator("#row input").input_value() == "2"
        row = page.locator("#row input")
        assert changed(page, lambda: (row.fill("4"), row.press("Enter")), "row 4, column 3")
        rollout = page.locator("#heads label", has_text="rollout")
        assert changed(page, rollout.click, "rollout up to this layer")
        larger = page.locator("#resolution label", has_text="16 × 16")
        assert changed(page, larger.click, "image 16 × 16, 8 × 8 patches")

        name = "<img src=x onerror=alert(1)>.png"
        upload(page, name, b"no image")
        page.locator("#status [role=alert]", has_text="not a JPEG, PNG").wait_for()
        assert "onerror=alert(1)" in page.inner_text("#status")
        assert "Traceback" not in page.content()
        assert page.locator("#top0 table").count() == page.locator("#drawing0 img").count() == 0
        upload(page, "large.png", digit + bytes(seen.MAX_FILE))
        page.get_by_text("exceed the maximum").first.wait_for()
        page.evaluate(PASTE, list(digit))
        page.locator("#top0 table").wait_for()
        assert all(a.startswith((url, "data:", "blob:")) for a in page.asked) and not page.dialogs
        assert forge(url, None)["success"]
        for path in ("/etc/hostname", str(workdir / "config.json"), "http://127.0.0.1:9/x.png"):
            for marks in ({}, {"meta": {"_type": "gradio.FileData"}}):
                answer = forge(url, {"path": path} | marks)
                assert not answer["success"] and "only uploads" in answer["output"]["error"]


@in_browser
def test_two_runs_behind_a_token_in_korean(workdir, digit):
    flags = ["--host=0.0.0.0", f"--token={TOKEN}", "--lang=ko"]
    with serving(f"--workdir={workdir}", f"--against={workdir}", *flags) as url, browsing() as page:
        url = url.replace("0.0.0.0", "127.0.0.1")
        for path in ("/", "/config", "/gradio_api/info", "/theme.css"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(url + path)
        page.goto(url)
        page.fill("input", "wrong" + TOKEN)
        page.click("button")
        page.locator("[role=alert]", has_text="토큰이 맞지 않습니다").wait_for()
        page.fill("input", TOKEN)
        page.click("button")
        page.locator("#status", has_text="아직 이미지가 없습니다").wait_for()
        upload(page, "one.png", digit)
        page.locator("#top1 table").wait_for()
        page.locator("#caption1", has_text="2개 층 중 2층").wait_for()
        patch = page.locator("#drawing1 img")
        patch.wait_for()
        at = dict(x=5, y=5)
        assert changed(page, lambda: patch.click(position=at), "1행 1열 패치에서", i=0)
        assert "1행 1열" in page.inner_text("#caption1")
        assert page.evaluate("document.documentElement.lang") == "ko"


@pytest.mark.skipif("gradio" in LACKS, reason="not installed: gradio")
def test_one_pass_a_picture_and_resolution(tmp_path, digit, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    from vit_jax.demo.page import Page

    module = vit.create("mu/4", image=16, num_classes=9)
    model = seen.complete(inference.of_module(module, "m"))
    compute, passes = model.compute, []
    model.compute = lambda *words: passes.append(1) or compute(*words)
    page = Page([model], Words("en"))
    blocks = page.build()
    values = {c: getattr(c, "value", None) for c in blocks.blocks.values()}
    for resolution in (0, 1, 0):
        for name in ("a.png", "b.png"):
            (tmp_path / name).write_bytes(digit)
            values |= {page.picture: str(tmp_path / name), page.resolution: resolution}
            page.show(values)
            for head in (0, 1):
                page.redraw(values | {page.heads: "one", page.head: head})
    assert len(passes) == 4


def test_the_command_refuses_in_one_line(workdir):
    command = [sys.executable, "-m", "vit_jax.tools.demo", f"--workdir={workdir}"]
    for flag, cause in {"--host=0.0.0.0": "--token", "--token=short": "5 characters"}.items():
        done = subprocess.run([*command, flag], capture_output=True, text=True)
        assert done.returncode == 2 and not done.stdout
        assert done.stderr.startswith("error: ") and cause in done.stderr
        assert done.stderr.count("\n") == 1
