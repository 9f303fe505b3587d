"""The demo: its access rules, explanations and panel without gradio, and its server with it."""

import http.client
import importlib.util
import json
import socket
import string
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_jax import inference, resnet, vit
from vit_jax.demo import access, explain, panel
from vit_jax.errors import UserError
from vit_jax.figures import catalog
from vit_jax.tools import demo

HOSTILE = "<img src=x onerror=alert(1)> ${1+1} {{7*7}} 고양이"
SAY = catalog.Catalog("demo", "en")
HAS_GRADIO = importlib.util.find_spec("gradio") is not None


def load(module, image=16, marks=HOSTILE):
    names = [f"class {i} {marks}" for i in range(module.config.num_classes)]
    quarter = (0.25,) * module.config.channels
    return inference.from_module(module, "<b>run</b>", image=image, std=quarter, class_names=names)


@pytest.fixture(scope="module")
def models():
    """A ViT with a class token, one without, and a ResNet."""
    return [
        load(vit.create("mu/4", image=16, num_classes=9, depth=2)),
        load(vit.create("mu/4", image=16, num_classes=3, pool="gap")),
        load(resnet.create("resnet8", width=8, num_classes=7)),
    ]


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)


def test_phrases_of_both_languages_have_the_same_fields():
    english, korean = (catalog.read(language)["demo"] for language in catalog.LANGUAGES)
    assert english.keys() == korean.keys()
    for phrase in english:
        fields = [
            sorted(field[1:3] for field in string.Formatter().parse(text) if field[1])
            for text in (english[phrase], korean[phrase])
        ]
        assert fields[0] == fields[1], phrase


def test_passwords_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "auth"
    file.write_text("ann:a:b c\n\n bob:고양이\n")
    assert access.read_auth(file) == [("ann", "a:b c"), ("bob", "고양이")]
    monkeypatch.delenv(access.VARIABLE, raising=False)
    assert access.read_auth() is None
    monkeypatch.setenv(access.VARIABLE, "ann:secret")
    assert access.read_auth() == [("ann", "secret")]
    for text, cause in {"\n": "is empty", "ann:x\nbob": "line 2 must be user:password"}.items():
        file.write_text(text)
        monkeypatch.setenv(access.VARIABLE, text)
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


def test_other_hosts_need_passwords():
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        access.check_host(host, None)
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org", ""):
        access.check_host(host, [("ann", "secret")])
        with pytest.raises(UserError, match="--auth_file=FILE"):
            access.check_host(host, None)
    assert access.allowed_hosts("0.0.0.0") == access.allowed_hosts("::") == ["*"]
    assert access.allowed_hosts("::1")[-2:] == ["[::1]", "[::1]"]
    assert "*" not in access.allowed_hosts("example.org")


def test_the_command_refuses_in_one_line_before_it_loads_a_model():
    command = [sys.executable, "-X", "importtime", "-m", "vit_jax.tools.demo", "--workdir=none"]
    done = subprocess.run([*command, "--host=0.0.0.0"], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2 and not done.stdout
    assert (
        len(lines) == 1 and lines[0].startswith("error: --host=0.0.0.0") and "VIT_JAX" in lines[0]
    )
    assert "| jax" not in done.stderr and "gradio" not in done.stderr


def test_without_gradio_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match="make install EXTRA=demo"):
        demo.check("127.0.0.1", 0, None)


def test_a_port_in_use_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port={port}"):
            access.free_port("127.0.0.1", port)


def test_maps_are_rows_of_the_models_attention(models, photo):
    for model, prefix in zip(models[:2], (1, 0), strict=True):
        model = model.replace(image=24)  # not the size it was made for
        found = explain.explain(model, photo)
        x = (np.float32(found.view) / 255 - 0.5) / 0.25
        out = model.module(x[None], attention=True)
        rows = np.asarray(out["attention"])[:, 0]
        whole = rows[..., 0, 1:] if prefix else rows.mean(-2)
        close = dict(rtol=2e-3, atol=1e-6)  # maps are kept in 16 bits
        values = explain.attention_map(found, -1, 1)
        np.testing.assert_allclose(values, whole[-1, 1].reshape(6, 6), **close)
        values = explain.attention_map(found, 0, "mean")
        np.testing.assert_allclose(values, whole[0].mean(0).reshape(6, 6), **close)
        values = explain.attention_map(found, 0, 0, (2, 5))
        expected = rows[0, 0, prefix + 2 * 6 + 5, prefix:]
        np.testing.assert_allclose(values, expected.reshape(6, 6), **close)
        rollout = np.eye(rows.shape[-1])
        for layer in rows:
            rollout = (layer.mean(0) + np.eye(len(rollout))) / 2 @ rollout
        values = explain.attention_map(found, model.depth - 1, "rollout", (0, 1))
        np.testing.assert_allclose(values.ravel(), rollout[prefix + 1, prefix:], **close)
        shares = np.exp(out["logits"][0]) / np.exp(out["logits"][0]).sum()
        assert found.top[0][0] == model.class_names[shares.argmax()]
        assert [p for _, p in found.top] == pytest.approx(sorted(shares)[::-1][:5], rel=1e-4)


def test_gradcam_explains_the_top_classes(models, photo):
    from vit_jax.analysis import gradcam

    model = models[2]
    found = explain.explain(model, photo)
    x = (np.float32(found.view) / 255 - 0.5) / 0.25
    classes = [model.class_names.index(name) for name, _ in found.top]
    expected = gradcam.resnet_grad_cam(model.module, x[None].repeat(5, 0), np.array(classes))
    for stage, values in zip(expected.values(), found.maps, strict=True):
        np.testing.assert_allclose(values, stage, rtol=1e-4, atol=1e-6)


def test_the_drawing_is_the_picture_with_the_map_on_it():
    view = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
    values = np.zeros((4, 4))
    values[1, 2] = 0.3
    plain = explain.draw(view, values, 0)
    assert plain.shape == (448, 448, 3) and (plain[::56, ::56] == view).all()
    colored = explain.draw(view, values, 1)
    assert (colored[112:224, 224:336] == [252, 253, 191]).all()  # the last color of magma
    assert (colored[:112] == [0, 0, 4]).all()  # and its first
    changed = (explain.draw(view, values, 0, (3, 0)) != plain).any(-1)
    assert changed[336:340, :112].any() and not changed[:336].any()
    assert not changed[:, 112:].any() and not changed[340:444, 4:108].any()


def test_a_click_finds_its_patch():
    assert explain.patch_at((447, 0), 448, (7, 14)) == (0, 13)
    assert explain.patch_at((0, 64), 448, (7, 14)) == (1, 0)
    assert explain.patch_at((9999, -5), 448, (7, 7)) == (0, 6)
    assert explain.convert_patch((3, 0), (4, 4), (8, 8)) == (7, 1)
    assert explain.convert_patch((7, 1), (8, 8), (4, 4)) == (3, 0)


def test_resolutions_divide_into_patches_of_all_models(models, monkeypatch):
    def sides(*group):
        return [[model.image for model in row] for row in explain.resolutions([*group])]

    assert sides(*models) == [[16, 16, 16], [24, 24, 24], [32, 32, 32], [48, 48, 48]]
    odd = load(vit.create("mu/7", image=21, num_classes=0), 21)
    assert sides(odd) == [[21], [42], [63]]
    assert sides(models[0], odd) == [[16, 21], [32, 42], [48, 63]]
    monkeypatch.setattr(explain, "MAX_MAPS_BYTES", 10)
    assert sides(models[0]) == [[16]]


def test_the_panel_says_what_is_drawn_and_escapes_names(models, photo):
    with_cls, _, cnn = models
    for model in models:
        table = panel.table(SAY, model, explain.explain(model, photo))
        assert "<img" not in table and "<b>" not in table and "&lt;img src=x" in table
        assert table.count('scope="row"') == min(5, len(model.class_names))
    found = explain.explain(with_cls, photo)
    picture, caption = panel.drawing(SAY, with_cls, found, panel.Dials(2, heads=1))
    assert caption.startswith("Layer 2 of 2 · head 1 · query: [CLS] · image 16 × 16, 4 × 4")
    dials = panel.Dials(1, query="patch", row=8, column=None, heads="rollout")
    moved, caption = panel.drawing(SAY, with_cls, found, dials, (8, 8))
    assert "patch in row 4, column 1" in caption and (moved != picture).any()
    beyond = panel.Dials(99, heads=99, query="patch", row=99, column=99)  # of a larger model
    assert "row 4, column 4" in panel.drawing(SAY, with_cls, found, beyond)[1]
    found = explain.explain(cnn, photo)
    assert [layer.shape[1:] for layer in found.maps] == [(16, 16), (8, 8), (4, 4)]
    _, caption = panel.drawing(SAY, cnn, found, panel.Dials(3, rank=1))
    assert found.top[1][0] in caption and caption.startswith("Stage 3 of 3")
    blind = load(vit.create("mu/4", image=16, num_classes=0))
    assert SAY("unnamed") in panel.table(SAY, blind, explain.explain(blind, photo))


@pytest.mark.skipif(not HAS_GRADIO, reason="not installed: gradio")
def test_a_page_of_any_models(models):
    from vit_jax.demo.page import Page

    blind = load(resnet.create("resnet8", width=8, num_classes=0))
    shallow = load(vit.create("mu/4", image=16, num_classes=0, depth=1))
    for group in ([shallow], [blind], models[2:], models[:2], [models[0], models[2]], [blind] * 2):
        assert Page(group, catalog.Catalog("demo", "ko")).build().blocks


@pytest.fixture(scope="module")
def server(models):
    """The page behind a password -> a client that is not logged in, and the uploads' folder."""
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


def test_only_requests_of_the_page_itself_are_answered(server):
    client, _ = server
    assert client.get("/").status_code == 200
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", ""):
        assert client.get("/", headers={"host": host}).status_code == 400
    own = str(client.base_url).rstrip("/")
    assert client.get("/", headers={"origin": own}).status_code == 200
    for origin in ("http://evil.example", "http://localhost:1", "null"):
        assert client.get("/", headers={"origin": origin}).status_code == 403
        for path in ("/login", "/gradio_api/upload", "/gradio_api/queue/join"):
            assert client.post(path, headers={"origin": origin}).status_code == 403


def test_nothing_is_served_without_the_password(server):
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


def test_large_requests_are_refused_before_they_are_stored(server):
    client, folder = server
    login(client)
    before = sorted(folder.rglob("*"))
    assert upload(client, bytes(access.MAX_FILE_BYTES + 1)).status_code == 413  # by gradio
    assert sorted(folder.rglob("*")) == before
    for path in ("/gradio_api/queue/join", "/gradio_api/upload", "/login"):
        connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port)
        connection.putrequest("POST", path)
        connection.putheader("content-length", access.MAX_REQUEST_BYTES + 1)
        connection.endheaders()  # refused before the body is sent
        assert connection.getresponse().status == 413
        connection.close()
        assert client.post(path, content=iter([b"x"])).status_code == 413  # of unknown length
    assert upload(client, bytes(1000)).status_code == 200


def send(client, **values):
    """Send the event of a new picture -> its outcome. values: of components, by element ID."""
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


def test_only_uploads_are_opened(server, photo, tmp_path):
    client, folder = server
    login(client)
    file = tmp_path / "a.png"
    Image.fromarray(photo).save(file)
    marks = {"meta": {"_type": "gradio.FileData"}}  # gradio checks nothing without them
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
    assert "not an image but a page of text" in str(answer["output"]["data"])
