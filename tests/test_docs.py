"""The documentation: commands and Python code run, links resolve, translations match."""

import functools
import importlib
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from configs import digits, dino_digits
from docs import __main__ as config_page
from tests import ROOT, command
from tests.pretrained.test_describe import sparse
from vit_jax import cli, config
from vit_jax.config import save_config
from vit_jax.run import Run
from vit_jax.workdir import checkpoint, log

PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "experiments/*/README.md")
    for path in ROOT.glob(pattern)
)
GUIDES = [name for name in PAGES if name.startswith(("README", "docs/"))]
TRANSLATED = [("README.md", "README.ko.md")] + [
    (f"docs/{path.name}", f"docs/ko/{path.name}") for path in (ROOT / "docs/ko").glob("*.md")
]
FENCE = re.compile(r"^```.*?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMENT = re.compile(r"(^|\s+)# .*")
NOT_RUN = re.compile(r"^# (not run here|serves until interrupted)", re.MULTILINE)
MAX_README_BYTES = 10_000
# What users of other codebases search for.
SEARCH_WORDS = """
    create_model forward_features drop_path_rate --model-ema --grad-checkpointing --aug-repeats
    --crop-pct pp_train ckpt_steps pool_type randaug(2,10) --out_dim --momentum_teacher
    --local_crops_number --warmup_teacher_temp eval_knn.py visualize_attention.py memory NaN FSDP
    SLURM Colab bfloat16 TensorBoard top-5 linear_probe ImageNet preempt
""".split()


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def prose(text):
    """A page without its code blocks and links to the other language."""
    return re.sub(r"\[(한국어|English)\]\(\S+\)( · )?", "", FENCE.sub("", text))


def headings(text):
    return [len(marks) for marks in re.findall(r"^(#+) ", prose(text), re.MULTILINE)]


def tables(text):
    """The number of cells in each row of each table."""
    found = re.findall(r"(?:^\|.*\n)+", prose(text), re.MULTILINE)
    return [[len(re.split(r"(?<!\\)\|", row)) - 2 for row in t.splitlines()] for t in found]


def links(text):
    """The targets of links, without the folder: translations are one folder deeper."""
    return [Path(target.split("#")[0]).name for target in LINK.findall(prose(text))]


def code_blocks(text):
    """The lines of code blocks, without comments; for the directory listing, only file names."""
    blocks = []
    for block in FENCE.findall(text):
        lines = [COMMENT.sub("", line) for line in block.splitlines()]
        if block.startswith("vit_jax/"):
            lines = [re.split(r"   +", line.strip())[0] for line in lines]
        blocks.append(lines)
    return blocks


def paragraphs(text):
    """Paragraphs, bullets and table rows."""
    return [p for p in re.split(r"\n\n|\n(?=[|*] )", prose(text)) if p.strip()]


def facts(paragraph):
    """Code spans and numbers, counted: their order depends on the language."""
    paragraph = LINK.sub("]", paragraph)
    code = [" ".join(span.split()) for span in CODE.findall(paragraph)]
    return Counter(code + re.findall(r"\d+(?:[.,]\d+)*", CODE.sub("", paragraph)))


@pytest.mark.parametrize("names", TRANSLATED, ids=lambda names: names[1])
def test_translation_matches(names):
    english, korean = map(read, names)
    for part in (headings, tables, links, code_blocks):
        assert part(korean) == part(english), part.__name__
    for one, other in zip(paragraphs(english), paragraphs(korean), strict=True):
        assert facts(other) == facts(one), f"{one}\n\n{other}"


def anchors(text):
    """The anchors of a page's headings, as MkDocs makes them."""
    titles = re.findall(r"^#+ (.*)", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w]+", "-", re.sub(r"[^\w\s-]", "", t).strip().lower()) for t in titles}


@pytest.mark.parametrize("name", PAGES)
def test_links_resolve(name):
    for target in LINK.findall(FENCE.sub("", read(name))):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        found = (ROOT / name).parent / path if path else ROOT / name
        assert found.exists(), target
        assert not anchor or anchor in anchors(found.read_text(encoding="utf-8")), target


def test_readme_is_short():
    assert (ROOT / "README.md").stat().st_size < MAX_README_BYTES


def test_config_page_is_current():
    assert read("docs/config.md") == config_page.page(), "run python -m docs"


def test_search_words_lead_somewhere():
    text = "\n".join(read(name) for name in GUIDES)
    assert [word for word in SEARCH_WORDS if word.lower() not in text.lower()] == []


KEY = re.compile(r"((?:data|augment|model|optim|objective|mesh|knn)\.[a-z][\w.]*)(?:=(.*))?")


@pytest.mark.parametrize("name", GUIDES)
def test_config_keys_exist(name):
    """Keys in code spans exist, and values given for them are allowed."""
    configs = [config.defaults(), dino_digits.get_config()]
    for span in CODE.findall(FENCE.sub("", read(name))):
        if match := KEY.fullmatch(span.strip()):
            key, value = match.groups()
            having = [c for c in configs if key in config.flat(c)]
            group = any(other.startswith(f"{key}.") for other in config.flat(configs[0]))
            assert having or group, span
            if having and value and not value.isupper():
                cli.override(having[0], key, value)
                config.schema(having[0].objective.name)[key].check(key, config.flat(having[0])[key])


def commands(text):
    """Commands in code blocks, as (line, whether it is run here)."""
    for block in FENCE.findall(text):
        joined = block.replace("\\\n", " ")
        for line in joined.splitlines():
            line = COMMENT.sub("", line).strip()
            if re.match(r"(VIT_JAX_\w+=\S+ )?(python -m|make) ", line):
                yield re.sub(r"^VIT_JAX_\S+ ", "", line), not NOT_RUN.search(block)


def inline_commands(text):
    """Commands in code spans, outside code blocks."""
    spans = [" ".join(span.split()) for span in CODE.findall(FENCE.sub("", text))]
    return [span for span in spans if span.startswith("python -m ")]


def parse(words):
    """Parse a command's flags and config, without running it. Return the exit code."""
    module = importlib.import_module(words[0])
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{words[0]}.__main__")
    if not hasattr(module, "define_flags"):
        return len(words) - 1  # takes no arguments
    stub = functools.wraps(module.main)(lambda *_: 0)
    tool = SimpleNamespace(main=stub, define_flags=module.define_flags, __name__=words[0])
    return command.run(tool, *words[1:])


@pytest.mark.parametrize("name", PAGES)
def test_commands_parse(name, workspace, capsys):  # noqa: ARG001  recipes read its images
    """Modules, flags, recipes and config keys in the documentation exist."""
    text = read(name)
    targets = re.search(r"^\.PHONY: (.*)", read("Makefile"), re.MULTILINE)[1].split()
    lines = [line for line, _ in commands(text)] + inline_commands(text)
    if name == "CHANGELOG.md":
        lines = []  # entries of older versions name what was current then
    for line in lines:
        words = shlex.split(line.partition(" | ")[0])
        if words[0] == "make":
            assert words[1] in targets, line
            continue
        words = [re.sub(r"^--config=FILE.*", "--config=configs/digits.py", w) for w in words[2:]]
        if words[0] == "pytest":
            files = [word for word in words if word.startswith("tests/")]
            assert all((ROOT / file).exists() for file in files), line
        if not words[0].startswith(("vit_jax", "experiments")) or "..." in line:
            continue
        assert parse(words) == 0, f"{line}\n{capsys.readouterr().err}"


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A directory with the files that the documentation names, as the current directory."""
    for name in ("configs", "experiments", "vit_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    rng = np.random.default_rng(0)

    def image(path, side=40):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side + 10, 3), np.uint8)).save(path)

    for split, count in (("train", 60), ("val", 4)):
        for label in ("cat", "dog"):
            for i in range(count):
                image(tmp_path / "pets" / split / label / f"{i}.jpg")
    image(tmp_path / "picture.png")
    np.save(tmp_path / "images.npy", np.zeros((2, 224, 224, 3), np.float32))
    sparse(tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def untrained_run(folder, config):
    config.compilation_cache = ""
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / "config.json")
    run = Run(config, jax.devices()[:1])
    with checkpoint.Checkpoints(folder, metric=config.best_metric) as saved:
        saved.save(1, run.init())
        saved.wait()
    log.write_run_json(folder, mesh=run.mesh, **run.metadata())


@pytest.mark.parametrize("name", [name for name in PAGES if PYTHON.search(read(name))])
def test_python_runs(name, workspace):
    untrained_run(workspace / "runs/digits", digits.get_config())
    if "dino_digits" in read(name):
        untrained_run(workspace / "runs/dino_digits", dino_digits.get_config())
    for block in PYTHON.findall(read(name)):
        values = {"images": np.zeros((1, 224, 224, 3), np.float32), "rng": jax.random.key(0)}
        values["picture"] = np.zeros((20, 30, 3), np.uint8)
        exec(block, values)


# Overrides that shrink training and searches, always the same, so that runs can be resumed.
SMALL = ["--config.total_steps=4", "--config.optim.warmup=0", "--config.batch_size=8"]
SMALL += ["--config.compilation_cache="]
SMALL_VIT = ["model.variant=mu/16", "model.image=32", "data.workers=0", "augment.repeats=1"]
# Commands that other tests cover, and pytest itself.
RUN_ELSEWHERE = {"experiments.cnn_vs_vit", "experiments.size_vs_accuracy", "pytest", "docs"}


def shrunk(words):
    """A documented command with overrides that make it short."""
    module, recipe = words[0], " ".join(words)
    if module.endswith((".train", ".sweep", ".study", ".seeds")):
        words = words + SMALL
        if "deit" in recipe:
            words = words + [f"--config.{override}" for override in SMALL_VIT]
    if module.endswith(".study"):
        words = words + ["--trials=2"]
    if module.endswith(".benchmark"):
        words = words + ["--pairs=1", "--seconds=1"]
    return words


@pytest.mark.slow
def test_commands_run(workspace):
    """Every command in the documentation runs, unless its block is marked as not run here."""
    folder = workspace / "fashion"
    folder.mkdir()
    write_idx(folder)
    seen = set()
    for recipe in ("digits", "dino_digits"):
        words = ["vit_jax.train", f"--config=configs/{recipe}.py", f"--workdir=runs/{recipe}"]
        execute(words, seen)
    for name in GUIDES:
        if "ko" in name.replace("/", ".").split("."):
            continue  # translations have the same commands
        for line, run_here in commands(read(name)):
            words = shlex.split(line)[2:]
            if run_here and line.startswith("python") and words[0] not in RUN_ELSEWHERE:
                execute(words, seen)
    assert len(seen) > 30


def execute(words, seen):
    """Run a command once, in a process of its own, as a user does."""
    if tuple(words) in seen:
        return
    seen.add(tuple(words))
    done = subprocess.run(
        [sys.executable, "-m", *shrunk(words)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"


def write_idx(folder):
    """The four files of the MNIST family, with 20 training and 10 test images of 28 pixels."""
    for split, count in (("train", 20), ("t10k", 10)):
        images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
        header = np.array([0x0803, count, 28, 28], ">u4").tobytes()
        (folder / f"{split}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = np.arange(count, dtype=np.uint8) % 10
        header = np.array([0x0801, count], ">u4").tobytes()
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())


@pytest.mark.slow
def test_site_builds(tmp_path):
    """MkDocs reports no broken link, missing page or malformed docstring."""
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path}"]
    done = subprocess.run(mkdocs, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "api/index.html").stat().st_size > 100_000
