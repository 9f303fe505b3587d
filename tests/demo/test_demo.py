"""The page to drop a picture on: its parts, which need no gradio."""

import asyncio
import re
import string
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from configs import digits
from vit_jax import inference, resnet, vit
from vit_jax.config import save_config
from vit_jax.data import decode
from vit_jax.demo import guard, panel, seen
from vit_jax.demo.words import LANGS, WORDS, Words
from vit_jax.errors import UserError
from vit_jax.tools import demo

TOKEN = "correct horse battery"
HOSTILE = "<img src=x onerror=alert(1)> ${1+1} {{7*7}} 고양이"


def complete(module, image):
    names = [f"class {i} {HOSTILE}" for i in range(module.config.num_classes)]
    channels = module.config.channels
    ready = dict(class_names=names, mean=(0.5,) * channels, std=(0.25,) * channels)
    model = inference.of_module(module, "<b>run</b>", image=image, **ready)
    model.step = 7
    return seen.complete(model)


@pytest.fixture(scope="module")
def models():
    """A ViT with and one without class token, and a ResNet."""
    gap = vit.create("mu/4", image=16, num_classes=3, pool="gap")
    cnn = resnet.create("resnet8", width=8, num_classes=7)
    return [
        complete(vit.create("mu/4", image=16, num_classes=9, depth=2), 16),
        complete(gap, 16),
    ] + [complete(cnn, 16)]


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)


def test_every_phrase_is_in_every_language_with_the_same_values():
    for phrase, texts in WORDS.items():
        assert len(texts) == len(LANGS) and all(texts), phrase
        fields = [{f[1:3] for f in string.Formatter().parse(t) if f[1]} for t in texts]
        assert fields[0] == fields[1], phrase
    assert re.search("[가-힣]", Words("ko")("title")) and not re.search(
        "[가-힣]", Words("en")("title")
    )


def test_a_page_for_others_needs_a_token():
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        guard.check_token(host, None)
    guard.check_token("0.0.0.0", TOKEN)
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org", ""):
        with pytest.raises(UserError, match="--token"):
            guard.check_token(host, None)
    with pytest.raises(UserError, match="15 characters"):
        guard.check_token("127.0.0.1", "x" * 15)
    assert guard.same("añ", "añ") and not guard.same("añ", "an") and not guard.same("", TOKEN)


def test_without_gradio_one_line_says_what_to_install(monkeypatch, tmp_path):
    save_config(digits.get_config(), tmp_path / "config.json")
    flags = SimpleNamespace(workdir=tmp_path, weights=None, model=None, class_names=None)
    flags.checkpoint, flags.raw, flags.host, flags.token = "best", False, "127.0.0.1", None
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match="make install EXTRA=demo"):
        demo.check(flags)


def ask(app, path="/", method="GET", body=b"", **headers):
    """-> status, headers and body of the answer of an ASGI application."""
    headers = {"host": "127.0.0.1:7860", "content_length": str(len(body))} | headers
    sent = []
    scope = dict(type="http", method=method, path=path, query_string=b"")
    scope["headers"] = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items() if v]

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    found = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(m.get("body", b"") for m in sent).decode()


async def inside(_, __, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


def test_the_guard_lets_in_what_comes_from_the_page(monkeypatch):
    monkeypatch.setattr(guard, "PAUSE", 0)
    hosts = {"127.0.0.1", "localhost"}
    app = guard.Guard(inside, Words("en"), hosts=hosts, largest=100)
    status, headers, body = ask(app)
    assert (status, body) == (200, "inside")
    assert "default-src 'self'" in headers["content-security-policy"]
    assert ask(app, host="evil.example:7860")[0] == ask(app, host="[::1")[0] == 403
    assert ask(app, origin="http://evil.example")[0] == ask(app, origin="null")[0] == 403
    assert ask(app, origin="http://127.0.0.1:7860")[0] == 200
    assert ask(app, method="POST", body=b"x" * 100)[0] == 200
    assert ask(app, method="POST", body=b"x" * 101)[0] == 413
    assert ask(app, method="POST", content_length="")[0] == 413


def test_the_guard_asks_for_the_token(monkeypatch):
    monkeypatch.setattr(guard, "PAUSE", 0)
    app = guard.Guard(inside, Words("ko"), token=TOKEN, largest=10**6)
    status, _, body = ask(app, "/gradio_api/upload", "POST", b"x")
    assert status == 401 and "접속 토큰" in body and "inside" not in body
    for wrong in (b"", b"token=", b"token=correct+horse", b"token=%ff%fe", b"\xff=\xfe"):
        status, headers, _ = ask(app, "/token", "POST", wrong)
        assert status == 401 and "set-cookie" not in headers
    assert ask(app, "/token", "POST", b"x" * 5000)[0] == 413
    status, headers, _ = ask(app, "/token", "POST", b"token=" + TOKEN.replace(" ", "+").encode())
    cookie = headers["set-cookie"]
    assert status == 303 and "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    assert ask(app, cookie=cookie.split(";")[0])[2] == "inside"
    assert ask(app, cookie=f"{guard.COOKIE}=x")[0] == ask(app, cookie=f"{guard.COOKIE}=é")[0] == 401


def test_a_file_is_read_or_refused_in_one_line(tmp_path, photo, monkeypatch):
    Image.fromarray(photo).save(tmp_path / "a.png")
    np.testing.assert_array_equal(seen.read(tmp_path / "a.png", 3), photo)
    assert seen.read(tmp_path / "a.png", 1).shape == (40, 30, 1)
    (tmp_path / "b.png").write_bytes(b"<html>")
    Image.fromarray(np.zeros((1, 1), np.uint8)).resize((8000, 8000)).save(tmp_path / "c.png")
    for name, cause in {"b.png": "HTML", "c.png": "pixels", "d.png": "no longer there"}.items():
        with pytest.raises(decode.DecodeError, match=f"^{name}: .*{cause}") as caught:
            seen.read(tmp_path / name, 3)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(seen, "MAX_FILE", 100)
    with pytest.raises(decode.DecodeError, match="more than 100"):
        seen.read(tmp_path / "a.png", 3)


def test_maps_are_rows_of_the_models_attention(models, photo):
    for model, prefix in zip(models[:2], (1, 0), strict=True):
        one = seen.see(model, photo, 24)  # not the size it was made for
        x = (np.float32(one.view) / 255 - 0.5) / 0.25
        out = model.module(x[None], attention=True)
        rows = np.asarray(out["attention"])[:, 0]
        whole = rows[..., 0, 1:] if prefix else rows.mean(-2)
        close = dict(rtol=2e-3, atol=1e-6)  # they are kept in 16 bits
        found = seen.softmax_map(one, -1, 1)
        np.testing.assert_allclose(found, whole[-1, 1].reshape(6, 6), **close)
        found = seen.softmax_map(one, 0, "mean")
        np.testing.assert_allclose(found, whole[0].mean(0).reshape(6, 6), **close)
        found = seen.softmax_map(one, 0, 0, (2, 5))
        expected = rows[0, 0, prefix + 2 * 6 + 5, prefix:]
        np.testing.assert_allclose(found, expected.reshape(6, 6), **close)
        n = rows.shape[-1]
        rolled = (rows[0].mean(0) + np.eye(n)) / 2
        if model.depth == 2:
            rolled = (rows[1].mean(0) + np.eye(n)) / 2 @ rolled
        found = seen.softmax_map(one, model.depth - 1, "rollout", (0, 1))
        np.testing.assert_allclose(found.ravel(), rolled[prefix + 1, prefix:], **close)
        shares = np.exp(out["logits"][0]) / np.exp(out["logits"][0]).sum()
        assert one.top[0][0] == model.names[shares.argmax()]
        assert [p for _, p in one.top] == pytest.approx(sorted(shares)[::-1][:5], rel=1e-4)


def test_the_drawing_is_the_picture_with_the_map_on_it():
    view = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
    values = np.zeros((4, 4))
    values[1, 2] = 0.3
    plain = seen.draw(view, values, 0)
    assert plain.shape == (448, 448, 3) and (plain[::56, ::56] == view).all()
    colored = seen.draw(view, values, 1)
    assert (colored[112:224, 224:336] == [252, 253, 191]).all()  # magma's last
    assert (colored[:112] == [0, 0, 4]).all()  # and its first
    framed = seen.draw(view, values, 0, (3, 0))
    changed = (framed != plain).any(-1)
    assert (framed[336, :112] == 255).all() and (framed[338, 2:110] == 0).all()
    assert (
        not changed[:336].any() and not changed[:, 112:].any() and not changed[340:444, 4:108].any()
    )


def test_a_click_finds_its_patch():
    assert seen.place((447, 0), (448, 448), (7, 14)) == (0, 13)
    assert seen.place((0, 64), (448, 448), (7, 14)) == (1, 0)
    assert seen.place((9999, -5), (448, 448), (7, 7)) == (0, 6)
    assert seen.convert((3, 0), (4, 4), (8, 8)) == (7, 1)
    assert seen.convert((7, 1), (8, 8), (4, 4)) == (3, 0)


def test_resolutions_divide_into_patches_for_all(models, monkeypatch):
    assert seen.sides(models) == [[16, 16, 16], [24, 24, 24], [32, 32, 32], [48, 48, 48]]
    odd = complete(vit.create("mu/7", image=21, num_classes=0), 21)
    assert seen.sides([odd]) == [[21], [42], [63]] and odd.names == []
    assert seen.sides([models[0], odd]) == [[16, 21], [32, 42], [48, 63]]
    monkeypatch.setattr(seen, "LARGEST", 10)
    assert seen.sides(models[:1]) == [[16]]


def test_only_so_much_is_remembered(monkeypatch):
    memory, one = {}, seen.Seen(np.zeros((8, 8, 1), np.uint8), [], np.zeros((1, 3, 4, 4)), 0)
    for i in range(20):
        seen.remember(memory, i, [one])
    assert list(memory) == list(range(12, 20))
    monkeypatch.setattr(seen, "KEPT_BYTES", 2 * one.bytes)
    seen.remember(memory, 20, [one])
    assert list(memory) == [19, 20]
    monkeypatch.setattr(seen, "KEPT_BYTES", 1)
    seen.remember(memory, 21, [one])
    assert list(memory) == [21]


def test_the_panel_says_what_is_drawn_and_escapes_names(models, photo):
    say = Words("en")
    for model in models:
        one = seen.see(model, photo, 16)
        table = panel.table(say, model, one)
        assert "<img" not in table and "<b>" not in table and "&lt;img src=x" in table
        assert table.count('scope="row"') == min(5, len(model.names))
    vit_, gap, cnn = models
    one = seen.see(vit_, photo, 16)
    picture, line = panel.drawing(say, vit_, one, panel.Dials(2, heads="one", head=1))
    assert line.startswith("Layer 2 of 2 · head 1 of 0 to 1 · from [CLS] · image 16 × 16, 4 × 4")
    dials = panel.Dials(1, whose="patch", row=8, column=1, heads="rollout")
    moved, line = panel.drawing(say, vit_, one, dials, (8, 8))
    assert "from the patch in row 4, column 1" in line and (moved != picture).any()
    for bad in (None, float("nan"), float("inf"), -9, 1e300, "x", [], {}):
        forged = panel.Dials(*[bad] * len(panel.Dials._fields))
        assert panel.drawing(say, vit_, one, forged)[0].shape == picture.shape
    one = seen.see(cnn, photo, 16)
    assert [layer.shape[1:] for layer in one.maps] == [(16, 16), (8, 8), (4, 4)]
    _, line = panel.drawing(say, cnn, one, panel.Dials(3, rank=1))
    assert one.top[1][0] in line and line.startswith("Stage 3 of 3")
    blind = complete(vit.create("mu/4", image=16, num_classes=0), 16)
    assert say("unnamed") in panel.table(say, blind, seen.see(blind, photo, 16))
