"""Tests of the demo: access control, explanations, panel, and the server if gradio is installed."""

import contextlib
import http.client
import importlib.util
import json
import socket
import string
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import GOLDEN, ROOT
from vit_jax import inference, resnet, vit
from vit_jax.analysis import logit_lens
from vit_jax.demo import access, explain, panel
from vit_jax.errors import UserError
from vit_jax.figures import catalog
from vit_jax.tools import demo

HOSTILE = "<img src=x onerror=alert(1)> ${1+1} {{7*7}} 고양이"
PHRASES = catalog.Catalog("demo", "en")
HAS_GRADIO = importlib.util.find_spec("gradio") is not None


def load(module, image=16, marks=HOSTILE):
    names = [f"class {i} {marks}" for i in range(module.config.num_classes)]
    quarter = (0.25,) * module.config.channels
    return inference.from_module(module, "<b>run</b>", image=image, std=quarter, class_names=names)


@pytest.fixture(scope="module")
def models():
    """A ViT with a class token, a ViT without, and a ResNet."""
    return [
        load(vit.create("mu/4", image=16, num_classes=9, depth=2)),
        load(vit.create("mu/4", image=16, num_classes=3, pool="gap")),
        load(resnet.create("resnet8", width=8, num_classes=7)),
    ]


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)


def test_phrases_have_the_same_fields_in_both_languages():
    english, korean = (catalog.read(language)["demo"] for language in catalog.LANGUAGES)
    assert english.keys() == korean.keys()
    for phrase in english:
        fields = [
            sorted(field[1:3] for field in string.Formatter().parse(text) if field[1])
            for text in (english[phrase], korean[phrase])
        ]
        assert fields[0] == fields[1], phrase


def test_passwords_are_read_from_file_or_environment(tmp_path, monkeypatch):
    file = tmp_path / "auth"
    file.write_text("ann:a:b c\n\n bob:고양이\n")
    assert access.read_auth(file) == [("ann", "a:b c"), ("bob", "고양이")]
    monkeypatch.delenv(access.AUTH_VARIABLE, raising=False)
    assert access.read_auth() is None
    monkeypatch.setenv(access.AUTH_VARIABLE, "ann:secret")
    assert access.read_auth() == [("ann", "secret")]
    for text, cause in {"\n": "is empty", "ann:x\nbob": "line 2 must be user:password"}.items():
        file.write_text(text)
        monkeypatch.setenv(access.AUTH_VARIABLE, text)
        for source in (file, None):
            with pytest.raises(UserError, match=cause) as caught:
                access.read_auth(source)
            assert "\n" not in str(caught.value)
    for path, cause in {tmp_path / "none": "No such file", tmp_path: "Is a directory"}.items():
        with pytest.raises(UserError, match=cause):
            access.read_auth(path)
    file.write_bytes(b"\xff:\xfe")
    with pytest.raises(UserError, match="utf-8"):
        access.read_auth(file)


def test_public_hosts_need_a_password():
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        access.check_host(host, None)
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org", ""):
        access.check_host(host, [("ann", "secret")])
        with pytest.raises(UserError, match="--auth_file=FILE"):
            access.check_host(host, None)
    assert access.allowed_hosts("0.0.0.0") == access.allowed_hosts("::") == ["*"]
    assert access.allowed_hosts("::1")[-2:] == ["[::1]", "[::1]"]
    assert "*" not in access.allowed_hosts("example.org")


def test_command_rejects_public_host_before_importing_jax():
    command = [sys.executable, "-X", "importtime", "-m", "vit_jax.tools.demo", "--workdir=none"]
    result = subprocess.run([*command, "--host=0.0.0.0"], capture_output=True, text=True)
    (line,) = [x for x in result.stderr.splitlines() if not x.startswith("import time:")]
    assert result.returncode == 2 and not result.stdout
    assert line.startswith("error: --host=0.0.0.0") and "VIT_JAX" in line
    assert "| jax" not in result.stderr and "gradio" not in result.stderr


def test_missing_gradio_error_names_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match="make install EXTRA=demo"):
        demo.check("127.0.0.1", 0, None)


def test_port_in_use_is_rejected():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"--port={port}"):
            access.free_port("127.0.0.1", port)


def test_attention_maps_match_the_models_attention(models, photo):
    for model, prefix in zip(models[:2], (1, 0), strict=True):
        model = model.replace(image=24)  # not the training size
        explanation = explain.explain(model, photo)
        x = (np.float32(explanation.view) / 255 - 0.5) / 0.25
        out = model.module(x[None], attention=True)
        rows = np.asarray(out["attention"])[:, 0]
        pooled = rows[..., 0, 1:] if prefix else rows.mean(-2)
        close = dict(rtol=2e-3, atol=1e-6)  # maps are stored in float16
        values = explain.attention_map(explanation, -1, 1)
        np.testing.assert_allclose(values, pooled[-1, 1].reshape(6, 6), **close)
        values = explain.attention_map(explanation, 0, "mean")
        np.testing.assert_allclose(values, pooled[0].mean(0).reshape(6, 6), **close)
        values = explain.attention_map(explanation, 0, 0, (2, 5))
        expected = rows[0, 0, prefix + 2 * 6 + 5, prefix:]
        np.testing.assert_allclose(values, expected.reshape(6, 6), **close)
        rollout = np.eye(rows.shape[-1])
        for layer in rows:
            rollout = (layer.mean(0) + np.eye(len(rollout))) / 2 @ rollout
        values = explain.attention_map(explanation, model.depth - 1, "rollout", (0, 1))
        np.testing.assert_allclose(values.ravel(), rollout[prefix + 1, prefix:], **close)
        probabilities = np.exp(out["logits"][0]) / np.exp(out["logits"][0]).sum()
        assert explanation.top[0][0] == model.class_names[probabilities.argmax()]
        assert [p for _, p in explanation.top] == pytest.approx(
            sorted(probabilities)[::-1][:5], rel=1e-4
        )


def test_logit_lens_of_every_layer(models, photo):
    for model in models[:2]:
        explanation = explain.explain(model, photo)
        (name, probability), *_ = explanation.top
        assert explanation.lens[-1][0] == name
        assert explanation.lens[-1][1:] == pytest.approx((probability, probability), rel=1e-5)
        expected = logit_lens.extract(model, [explanation.view]).probabilities[0]
        assert len(explanation.lens) == model.depth == len(expected)
        for row, (label, share, of_predicted) in zip(expected, explanation.lens, strict=True):
            assert label == model.class_names[row.argmax()]
            assert (share, of_predicted) == pytest.approx(
                (row.max(), row[model.class_names.index(name)]), rel=1e-5
            )


def test_gradcam_is_of_the_top_classes(models, photo):
    from vit_jax.analysis import gradcam

    model = models[2]
    explanation = explain.explain(model, photo)
    x = (np.float32(explanation.view) / 255 - 0.5) / 0.25
    classes = [model.class_names.index(name) for name, _ in explanation.top]
    expected = gradcam.resnet_grad_cam(model.module, x[None].repeat(5, 0), np.array(classes))
    for stage, values in zip(expected.values(), explanation.maps, strict=True):
        np.testing.assert_allclose(values, stage, rtol=1e-4, atol=1e-6)


def test_draw_overlays_the_map_on_the_image():
    view = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
    values = np.zeros((4, 4))
    values[1, 2] = 0.3
    plain = explain.draw(view, values, 0)
    assert plain.shape == (448, 448, 3) and (plain[::56, ::56] == view).all()
    colored = explain.draw(view, values, 1)
    assert (colored[112:224, 224:336] == [252, 253, 191]).all()  # last color of magma
    assert (colored[:112] == [0, 0, 4]).all()  # first color
    changed = (explain.draw(view, values, 0, (3, 0)) != plain).any(-1)
    assert changed[336:340, :112].any() and not changed[:336].any()
    assert not changed[:, 112:].any() and not changed[340:444, 4:108].any()


def test_patch_at_pixel_and_in_another_grid():
    assert explain.patch_at((447, 0), 448, (7, 14)) == (0, 13)
    assert explain.patch_at((0, 64), 448, (7, 14)) == (1, 0)
    assert explain.patch_at((9999, -5), 448, (7, 7)) == (0, 6)
    assert explain.convert_patch((3, 0), (4, 4), (8, 8)) == (7, 1)
    assert explain.convert_patch((7, 1), (8, 8), (4, 4)) == (3, 0)


def test_resolutions_are_valid_for_all_models(models, monkeypatch):
    def sides(*group):
        return [[model.image for model in row] for row in explain.resolutions([*group])]

    assert sides(*models) == [[16, 16, 16], [24, 24, 24], [32, 32, 32], [48, 48, 48]]
    odd = load(vit.create("mu/7", image=21, num_classes=0), 21)
    assert sides(odd) == [[21], [42], [63]]
    assert sides(models[0], odd) == [[16, 21], [32, 42], [48, 63]]
    monkeypatch.setattr(explain, "MAX_MAPS_BYTES", 10)
    assert sides(models[0]) == [[16]]


def test_panel_captions_and_escaped_names(models, photo):
    with_cls, _, cnn = models
    for model in models:
        table = panel.table(PHRASES, model, explain.explain(model, photo))
        assert "<img" not in table and "<b>" not in table and "&lt;img src=x" in table
        assert table.count('scope="row"') == min(5, len(model.class_names))
        lens = panel.lens_table(PHRASES, model, explain.explain(model, photo))
        assert lens.count('scope="row"') == (0 if model.is_cnn else model.depth)
        assert "<img" not in lens and "<b>" not in lens and ("&lt;img" in lens) != model.is_cnn
    explanation = explain.explain(with_cls, photo)
    picture, caption = panel.drawing(PHRASES, with_cls, explanation, panel.Controls(2, heads=1))
    assert caption.startswith("Layer 2 of 2 · head 1 · query: [CLS] · image 16 × 16, 4 × 4")
    controls = panel.Controls(1, query="patch", row=8, column=None, heads="rollout")
    moved, caption = panel.drawing(PHRASES, with_cls, explanation, controls, (8, 8))
    assert "patch at row 4, column 1" in caption and (moved != picture).any()
    beyond = panel.Controls(99, heads=99, query="patch", row=99, column=99)  # of a larger model
    assert "row 4, column 4" in panel.drawing(PHRASES, with_cls, explanation, beyond)[1]
    explanation = explain.explain(cnn, photo)
    assert [layer.shape[1:] for layer in explanation.maps] == [(16, 16), (8, 8), (4, 4)]
    _, caption = panel.drawing(PHRASES, cnn, explanation, panel.Controls(3, rank=1))
    assert explanation.top[1][0] in caption and caption.startswith("Stage 3 of 3")
    headless = load(vit.create("mu/4", image=16, num_classes=0))
    explanation = explain.explain(headless, photo)
    assert PHRASES("unnamed") in panel.table(PHRASES, headless, explanation)
    assert not panel.lens_table(PHRASES, headless, explanation)


def test_nearly_uniform_map_is_marked_and_not_exaggerated(models, photo):
    model = models[0]
    explanation = explain.explain(model, photo)
    n = explanation.maps.shape[-1]
    for peak, uniform in ((0.09, True), (0.2, False)):
        maps = np.full_like(explanation.maps, 1 / n)
        maps[..., 0, 1] = peak  # from [CLS] to the first patch
        drawn, caption = panel.drawing(
            PHRASES, model, explanation._replace(maps=maps), panel.Controls(opacity=1)
        )
        assert f"maximum weight {peak:.1%}, uniform attention 5.9%" in caption
        assert ("nearly uniform" in caption) == uniform
        assert (drawn[0, 0] == [252, 253, 191]).all() != uniform  # last color of magma
    controls = panel.Controls(opacity=1, interpolation="bilinear")
    smooth, _ = panel.drawing(PHRASES, model, explanation._replace(maps=maps), controls)
    assert (smooth[56, 56] > smooth[56, 100]).all() and (drawn[56, 56] == drawn[56, 100]).all()


@pytest.mark.skipif(not HAS_GRADIO, reason="not installed: gradio")
def test_page_builds_for_all_kinds_of_models(models):
    from vit_jax.demo.page import Page

    headless = load(resnet.create("resnet8", width=8, num_classes=0))
    shallow = load(vit.create("mu/4", image=16, num_classes=0, depth=1))
    for group in (
        [shallow],
        [headless],
        models[2:],
        models[:2],
        [models[0], models[2]],
        [headless] * 2,
    ):
        assert Page(group, catalog.Catalog("demo", "ko")).build().blocks


@pytest.fixture(scope="module")
def server(models):
    """Serve the page with a password; yield a logged-out client and the folder of uploads."""
    if not HAS_GRADIO:
        pytest.skip("not installed: gradio")
    import httpx

    from vit_jax.demo import serve

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("GRADIO_TEMP_DIR", folder)
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        port = access.free_port("127.0.0.1", 0)
        blocks = serve.launch(models[:1], "en", "127.0.0.1", port, [("ann", "secret")])
        with httpx.Client(base_url=blocks.local_url, timeout=60) as client:
            yield client, Path(folder)
        blocks.close()


def login(client, password="secret"):
    return client.post("/login", data={"username": "ann", "password": password})


def upload(client, content):
    return client.post("/gradio_api/upload", files={"files": ("a.png", content)})


def test_cross_origin_requests_are_rejected(server):
    client, _ = server
    assert client.get("/").status_code == 200
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", ""):
        assert client.get("/", headers={"host": host}).status_code == 400
    origin = str(client.base_url).rstrip("/")
    assert client.get("/", headers={"origin": origin}).status_code == 200
    for origin in ("http://evil.example", "http://localhost:1", "null"):
        assert client.get("/", headers={"origin": origin}).status_code == 403
        for path in ("/login", "/gradio_api/upload", "/gradio_api/queue/join"):
            assert client.post(path, headers={"origin": origin}).status_code == 403


def test_requests_without_login_are_rejected(server):
    client, folder = server
    client.cookies.clear()
    for path in ("/config", "/gradio_api/info", "/gradio_api/file=/etc/hostname"):
        assert client.get(path).status_code == 401
    assert (
        client.post("/gradio_api/queue/join", json={"data": [], "fn_index": 0}).status_code == 401
    )
    assert upload(client, b"x").status_code == 401
    for wrong in ("", "secre", "secret2", "비밀"):
        assert login(client, wrong).status_code in (400, 422)
    assert client.get("/config").status_code == 401
    assert login(client).status_code == 200
    assert client.get("/config").status_code == 200


def test_large_requests_are_rejected_before_they_are_stored(server):
    client, folder = server
    login(client)
    before = sorted(folder.rglob("*"))
    assert upload(client, bytes(access.MAX_FILE_BYTES + 1)).status_code == 413  # by gradio
    assert sorted(folder.rglob("*")) == before
    for path in ("/gradio_api/queue/join", "/gradio_api/upload", "/login"):
        connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port)
        connection.putrequest("POST", path)
        connection.putheader("content-length", access.MAX_REQUEST_BYTES + 1)
        connection.endheaders()  # rejected before the body is sent
        assert connection.getresponse().status == 413
        connection.close()
        assert client.post(path, content=iter([b"x"])).status_code == 413  # unknown length
    assert upload(client, bytes(1000)).status_code == 200


def send(client, **values):
    """Send the event of a new image; return its result. values: {element id: value}."""
    config = client.get("/config").json()
    props = {c["id"]: c["props"] for c in config["components"]}
    event = config["dependencies"][0]
    data = [values.get(props[i].get("elem_id"), props[i].get("value")) for i in event["inputs"]]
    body = dict(data=data, fn_index=event["id"], session_hash="forged")
    assert client.post("/gradio_api/queue/join", json=body).status_code == 200
    with client.stream("GET", "/gradio_api/queue/data?session_hash=forged") as lines:
        for line in lines.iter_lines():
            if "process_completed" in line:
                return json.loads(line.removeprefix("data: "))


def test_only_uploaded_files_are_opened(server, photo, tmp_path):
    client, folder = server
    login(client)
    file = tmp_path / "a.png"
    Image.fromarray(photo).save(file)
    marks = {"meta": {"_type": "gradio.FileData"}}  # without it, gradio does not check the path
    (path,) = upload(client, file.read_bytes()).json()
    assert "<table>" in str(send(client, picture={"path": path} | marks)["output"]["data"])
    for forged in (file, "/etc/hostname", f"{path}/../../../..{file}", "http://127.0.0.1:9/a.png"):
        payload = {"path": str(forged)}
        assert client.get(f"/gradio_api/file={forged}").status_code in (403, 404)
        assert not send(client, picture=payload | marks)["success"]
        assert not send(client, resolution=payload | marks)["success"]
        answer = send(client, picture=payload)
        assert "not an uploaded file" in str(answer["output"]["data"])
    assert not list(folder.rglob("hostname"))
    (path,) = upload(client, b"<html>").json()
    answer = send(client, picture={"path": path} | marks)
    assert "an HTML or XML document" in str(answer["output"]["data"])


@pytest.mark.skipif(not HAS_GRADIO, reason="not installed: gradio")
def test_half_open_connections_do_not_keep_visitors_out():
    """Each connection needs a file descriptor; the soft limit here is below their number."""
    weights = GOLDEN / "vit/vit_cls/state_dict.safetensors"
    command = f"{sys.executable} -m vit_jax.tools.demo --weights={weights} --model=num_heads=3"
    command = ["bash", "-c", f"ulimit -S -n 128; exec {command} --port=0"]
    requests = [
        b"",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-a: b",
        b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\nuser",
        b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\n{",
    ]
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process,
        contextlib.ExitStack() as half_open,
    ):
        try:
            url = urllib.parse.urlsplit(process.stdout.readline().strip())
            page = f"{url.geturl()}gradio_api/startup-events"
            urllib.request.urlopen(page, timeout=60).close()  # the first request may be slow
            for i in range(200):
                connection = socket.create_connection((url.hostname, url.port), timeout=10)
                half_open.enter_context(connection).sendall(requests[i % len(requests)])
            assert urllib.request.urlopen(page, timeout=2).status == 200
        finally:
            process.terminate()
