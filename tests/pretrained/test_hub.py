"""Tests of weights from the Hugging Face Hub, with a local server in its place."""

import base64
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.parse

import pytest

import tests
from tests import ROOT

pytest.importorskip("huggingface_hub")

GOLDEN = tests.GOLDEN / "vit/vit_cls/state_dict.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"
MAX_LFS_BYTES = 2**20  # of a file; larger ones are refused
CONFIG = {
    "architecture": "vit_tiny_patch16_224",
    "model_args": {"depth": 2, "embed_dim": 48, "num_heads": 3, "patch_size": 4},
    "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "num_classes": 10},
}
FILES = {"model.safetensors": GOLDEN.read_bytes(), "config.json": json.dumps(CONFIG).encode()}
FILES |= {"README.md": b"not downloaded", "flax_model.msgpack": b"not downloaded"}
SCRIPT = """
import sys
from vit_jax import pretrained
from vit_jax.errors import UserError
try:
    described = pretrained.describe(sys.argv[1])
    print(described.num_classes, described.crop, *described.notes, pretrained.origin(sys.argv[1]))
except UserError as error:
    sys.exit(f"error: {error}")
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """The parts of the Hub's interface that a download and an upload use, for one repository."""

    requested = []
    created = []
    stored = {}  # SHA-256: file of git LFS
    committed = {}  # path: contents

    def do_GET(self):
        self.answer(True)

    def do_HEAD(self):
        self.answer(False)

    def answer(self, with_body):
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        self.requested.append(path)
        if path in [f"/api/models/org/name/revision/{x}" for x in ("main", "v1", COMMIT)]:
            files = [{"rfilename": name} for name in FILES]
            self.send(json.dumps({"id": "org/name", "sha": COMMIT, "siblings": files}).encode())
        elif path.startswith("/api/models/org/name/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in FILES.items()
            ]
            self.send(json.dumps(entries).encode())
        elif path.startswith("/api/models/org/name"):
            self.send(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(f"/org/name/resolve/{COMMIT}/"):
            data = FILES.get(path.rpartition("/")[2])
            if data is None:
                self.send(b"", 404, {"X-Error-Code": "EntryNotFound"})
            else:
                etag = hashlib.sha256(data).hexdigest()
                self.send(data if with_body else b"", 200, {"ETag": f'"{etag}"'}, len(data))
        else:
            self.send(b"{}", 401, {"X-Error-Code": "RepoNotFound"})

    def do_POST(self):
        endpoint = f"http://{self.headers['Host']}"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.send(b'{"error": "Invalid username or password."}', 401)
        if self.path == "/api/repos/create":
            repository = "{organization}/{name}".format_map(json.loads(body))
            status = 409 if repository in self.created else 200
            self.created.append(repository)
            answer = {"url": f"{endpoint}/{repository}"}
            return self.send(json.dumps(answer).encode(), status)
        if self.path == "/api/validate-yaml":
            answer = {"warnings": [], "errors": []}
        elif self.path == "/api/models/org/new/preupload/main":
            answer = {"files": json.loads(body)["files"]}
            for file in answer["files"]:
                lfs = file["path"].endswith(".safetensors")
                file |= {"uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
        elif self.path == "/org/new.git/info/lfs/objects/batch":
            answer = {"objects": json.loads(body)["objects"], "transfer": "basic"}
            for item in answer["objects"]:
                item["actions"] = {"upload": {"href": f"{endpoint}/lfs/{item['oid']}"}}
        elif self.path == "/api/models/org/new/commit/main":
            for operation in map(json.loads, body.splitlines()):
                value = operation["value"]
                if operation["key"] == "file":
                    self.committed[value["path"]] = base64.b64decode(value["content"])
                elif operation["key"] == "lfsFile":
                    self.committed[value["path"]] = self.stored[value["oid"]]
            answer = {"commitUrl": f"{endpoint}/org/new/commit/{COMMIT}", "commitOid": COMMIT}
        else:
            return self.send(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        self.send(json.dumps(answer).encode())

    def do_PUT(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.removeprefix("/lfs/")
        matches = oid == hashlib.sha256(data).hexdigest() and len(data) <= MAX_LFS_BYTES
        self.stored[oid] = data
        self.send(b"", 200 if matches else 403)

    def send(self, data, status=200, headers=None, size=None):
        self.send_response(status)
        headers = {"X-Repo-Commit": COMMIT, "Content-Type": "application/json"} | (headers or {})
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data) if size is None else size))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    for record in (Hub.requested, Hub.created, Hub.stored, Hub.committed):
        record.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def run(spec, cache, endpoint, **env):
    """Describe the weights of `spec` in a process of its own, because of its environment."""
    done = execute(["-c", SCRIPT, spec], cache, endpoint, **env)
    return done.stdout + done.stderr


def execute(args, cache, endpoint, **env):
    """Run Python with the server in place of the Hub."""
    env = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"} | env
    env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "no_proxy": "*"}
    command = [sys.executable, *args]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def test_weights_are_downloaded_pinned_and_cached(server, tmp_path):
    text = run("hf-hub:org/name", tmp_path, server)
    digest = hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    assert text.startswith(f"10 1.0 commit {COMMIT} {{'spec': 'hf-hub:org/name', "), text
    assert f"'commit': '{COMMIT}'" in text and digest in text
    fetched = {path.rpartition("/")[2] for path in Hub.requested if "/resolve/" in path}
    assert fetched == {"model.safetensors", "config.json"}
    for spec in ("hf-hub:org/name@v1", f"hf-hub:org/name@{COMMIT}"):
        assert run(spec, tmp_path, server).startswith(f"10 1.0 commit {COMMIT}")
    nowhere = "http://127.0.0.1:9"
    offline = run("hf-hub:org/name", tmp_path, nowhere, HF_HUB_OFFLINE="1")
    assert offline.startswith(f"10 1.0 commit {COMMIT}"), offline
    assert run("hf-hub:org/name", tmp_path, nowhere).startswith(f"10 1.0 commit {COMMIT}")


def test_failures_are_one_line(server, tmp_path):
    for spec, endpoint, env, message in (
        ("hf-hub:org/other", server, {}, "there is no such repository, or it is private; log in"),
        ("hf-hub:org/name@v2", server, {}, "there is no revision v2"),
        ("hf-hub:org/name", "http://127.0.0.1:9", {}, "not in the cache, and the Hugging Face Hub"),
        ("hf-hub:org/name", server, {"HF_HUB_OFFLINE": "1"}, "it is not in the cache, and"),
        ("hf-hub:name", server, {}, "the form is hf-hub:ORGANIZATION/NAME or"),
        ("hf-hub:../name", server, {}, "the form is hf-hub:ORGANIZATION/NAME or"),
    ):
        text = run(spec, tmp_path / "cache", endpoint, **env)
        lines = text.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: hf-hub:"), text
        assert message in text


def test_the_missing_package_is_named(tmp_path):
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError")
    text = run("hf-hub:org/name", tmp_path, "http://127.0.0.1:9", PYTHONPATH=str(tmp_path))
    assert text.startswith("error: hf-hub:org/name needs the package huggingface_hub; run pip")


def test_push_uploads_weights_config_and_card(server, tmp_path):
    source, output = tmp_path / "source", tmp_path / "new"
    source.mkdir()
    for name in ("model.safetensors", "config.json"):
        (source / name).write_bytes(FILES[name])
    convert = ["-m", "vit_jax.tools.convert", f"--weights={source}", "--to=timm"]
    args = [*convert, f"--output={output}", "--push=org/new"]
    done = execute(args, tmp_path / "cache", server, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{server}/org/new/commit/{COMMIT}"
    written = {path.name: path.read_bytes() for path in output.iterdir()}
    assert written.keys() == {"model.safetensors", "config.json", "README.md"}
    assert Hub.committed == written
    assert list(Hub.stored.values()) == [written["model.safetensors"]]
    assert b'timm.create_model("hf-hub:org/new", pretrained=True)' in Hub.committed["README.md"]


PUSH = """
import sys
from vit_jax.errors import UserError
from vit_jax.pretrained import hub
try:
    print(hub.push("org/new", sys.argv[1]))
except UserError as error:
    sys.exit(f"error: {error}")
"""


def test_a_push_to_an_existing_repository_and_failures(server, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x" * 10)
    token = {"HF_TOKEN": TOKEN}
    for data in (b"first", b"second"):
        (folder / "config.json").write_bytes(data)
        done = execute(["-c", PUSH, folder], tmp_path, server, **token)
        assert done.stdout == f"{server}/org/new/commit/{COMMIT}\n", done.stderr
        assert Hub.committed["config.json"] == data
    (folder / "model.safetensors").write_bytes(b"x" * (MAX_LFS_BYTES + 1))
    for endpoint, env, message in (
        (server, {}, "Invalid username or password"),
        (server, token, "403"),
        ("http://127.0.0.1:9", token, "onnect"),
        (server, token | {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
    ):
        done = execute(["-c", PUSH, folder], tmp_path, endpoint, **env)
        lines = done.stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: --push=org/new: the upload"), lines
        assert message in lines[0]
        assert lines[0].endswith(f"run hf upload org/new {folder}")
