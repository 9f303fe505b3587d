"""What is found before a model is built: data, labels, durations; and data as part of a run."""

import json
import os
import shutil
import subprocess
import sys
import unicodedata

import jax
import numpy as np
import pytest
from PIL import Image

from configs import deit, digits, dino_own_images, own_images
from tests import ROOT, command
from tests.stop import StopAfter
from tests.tiny import tiny
from vit_jax import data, evaluators, inference, train
from vit_jax.batch import class_weights, train_batches
from vit_jax.data import folder
from vit_jax.errors import UserError
from vit_jax.plan import Plan
from vit_jax.workdir import log

COLORS = {"cat": (200, 0, 0), "dog": (0, 200, 0), "zebra": (0, 0, 200)}


def make_images(root, counts, suffix=".png"):
    """Write {"train/cat": number of images} with one color per class."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        color = COLORS.get(os.path.basename(name), (90, 90, 90))
        for i in range(count):
            Image.new("RGB", (8, 8), color).save(root / name / f"{i}{suffix}")
    return root


def make_config(root, **values):
    c = tiny(deit.get_config("Ti"))
    c.data.name = "folder"
    c.data.dir = str(root)
    c.augment.repeats = 1
    c.batch_size = 4
    c.eval_batch_size = 4
    c.model.image = 32
    c.compilation_cache = ""
    c.loggers = ()
    c.update_from_flattened_dict(values)
    return c


def labels_by_color(source):
    """Return {color: label} of all images."""
    examples = [source[i] for i in range(len(source))]
    return {tuple(x["image"][0, 0].tolist()): x["label"] for x in examples}


def test_labels_are_matched_by_class_name(tmp_path):
    """val lacks the first class of train and test has an empty directory: labels keep meaning."""
    make_images(tmp_path, {"train/cat": 4, "train/dog": 4, "train/zebra": 4})
    make_images(tmp_path, {"val/dog": 2, "val/zebra": 2, "test/cat": 0, "test/zebra": 3})
    plan = Plan(make_config(tmp_path))
    names = plan.sources["train"].class_names
    expected = {COLORS[name]: label for label, name in enumerate(names)}
    for split in ("val", "test"):
        found = labels_by_color(plan.sources[split])
        assert found == {color: expected[color] for color in found}
    assert [line for line in plan.notes if "val" in line] == [
        "val has no images of 1 of 3 classes: 'cat'"
    ]
    assert "test has no images of 2 of 3 classes: 'cat', 'dog'" in plan.notes


def test_class_names_are_matched_after_unicode_normalization(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "강아지") for form in ("NFC", "NFD"))
    assert composed != decomposed
    make_images(tmp_path, {f"train/{composed}": 4, "train/cat": 4, f"val/{decomposed}": 2})
    c = make_config(tmp_path, **{"data.test": "val"})
    assert data.make(c, "val")[0]["label"] == data.make(c, "train").class_names.index(composed)
    make_images(tmp_path, {f"train/{decomposed}": 4})
    with pytest.raises(UserError, match="two classes with the name"):
        Plan(c)


def test_a_class_that_train_lacks_is_refused(tmp_path, capsys):
    make_images(tmp_path, {"train/cat": 4, "train/dog": 4, "val/Cat": 2, "val/dog": 2})
    c = make_config(tmp_path, **{"data.test": "val"})
    with pytest.raises(UserError, match="'Cat'.*'cat', 'dog'.*rename"):
        Plan(c)
    # At the command line: before JAX, within seconds, and without a trace.
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from configs import own_images\n"
        "adapt = own_images.adapt\n"
        "def get_config():\n    return own_images.get_config()\n"
    )
    workdir = tmp_path / "run"
    options = [f"--config={recipe}", f"--workdir={workdir}", f"--config.data.dir={tmp_path}"]
    assert command.run(train, *options) == 2
    assert "'Cat'" in capsys.readouterr().err
    assert not workdir.exists()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"data.test": "tset"}, r"config.data.test = 'tset': unknown split 'tset'"),
        ({"data.val": "val[:"}, r"config.data.val = 'val\[:': invalid split"),
        ({"batch_size": 16}, "batch_size = 16 is larger than the training split, 8 images"),
        ({"model.num_classes": 1}, "num_classes = 1 is smaller than .* the data, 2"),
        ({"optim.warmup": "2"}, r"optim.warmup = '2' \(2 steps\) must be shorter than"),
        ({"optim.warmup": "1ep", "total_steps": "1ep"}, "the learning rate would not reach its"),
        ({"model_init": "missing.safetensors"}, "missing.safetensors"),
    ],
)
def test_mistakes_are_found_before_the_workdir_is_created(tmp_path, values, message):
    make_images(tmp_path, {"train/cat": 4, "train/dog": 4, "val/dog": 2, "test/cat": 2})
    c = make_config(tmp_path, **values)
    with pytest.raises(UserError, match=message):
        train.train(c, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_class_is_refused(tmp_path):
    make_images(tmp_path, {"train/cat": 8})
    with pytest.raises(UserError, match="has one class, 'cat'; a classifier needs at least 2"):
        Plan(make_config(tmp_path, **{"data.val": "train", "data.test": "train"}))


def test_checks_do_not_import_jax(tmp_path):
    make_images(tmp_path, {"cat": 20, "dog": 20})
    code = (
        "import sys; from vit_jax import cli, train\n"
        f"c = cli.build_config('configs/own_images.py', [('data.dir', {str(tmp_path)!r})])\n"
        f"train.prepare(c, {str(tmp_path / 'run')!r})\n"
        "assert 'jax' not in sys.modules and 'orbax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert not (tmp_path / "run").exists()


def test_every_file_is_read_or_counted(tmp_path):
    make_images(tmp_path, {"train/cat": 2, "train/cat/more/nested": 2, "train/dog": 2})
    make_images(tmp_path, {"train/dog": 3}, suffix=".tif")
    os.symlink(tmp_path / "train", tmp_path / "train/dog/loop")
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    (tmp_path / "train/loose.jpg").write_text("without a class")
    (tmp_path / "train/cat/.DS_Store").write_text("hidden")
    source = data.make(make_config(tmp_path), "train")
    assert len(source) == 9
    assert np.bincount(source.labels).tolist() == [4, 5]
    assert "2 files are not used, such as notes.txt" in source.notes[0]


def test_slices_of_a_folder_are_stratified(tmp_path):
    make_images(tmp_path, {"cat": 50, "dog": 20, "zebra": 1})
    c = make_config(tmp_path, **{"data.train": "all[:80%]"})
    counts = [
        np.bincount(data.make(c, f"all{part}").labels, minlength=3).tolist()
        for part in ("[:80%]", "[80%:90%]", "[90%:]")
    ]
    assert np.sum(counts, 0).tolist() == [50, 20, 1]
    for row, share in zip(counts, (0.8, 0.1, 0.1), strict=True):
        assert abs(row[0] - 50 * share) <= 1 and abs(row[1] - 20 * share) <= 1
    assert counts[0][2] == 1, "a class with a single image is in the training split"


def test_choose_splits(tmp_path):
    def chosen(*directories):
        shutil.rmtree(tmp_path)
        make_images(tmp_path, dict.fromkeys(directories, 20))
        return tuple(folder.choose_splits(str(tmp_path)).values())

    assert chosen("cat", "dog") == ("all[:80%]", "all[80%:90%]", "all[90%:]")
    assert chosen("train/cat") == ("train[:80%]", "train[80%:90%]", "train[90%:]")
    assert chosen("train/cat", "validation/cat") == ("train[:90%]", "train[90%:]", "validation")
    assert chosen("Train/cat", "test/cat") == ("Train[:90%]", "Train[90%:]", "test")
    assert chosen("train/cat", "val/cat", "test/cat") == ("train", "val", "test")
    # A test directory without classes cannot be evaluated.
    assert chosen("train/cat", "val/cat", "test") == ("train[:90%]", "train[90%:]", "val")
    with pytest.raises(UserError, match="no directory train"):
        chosen("val/cat", "cat")
    # With few images, one for validation and one for the test.
    shutil.rmtree(tmp_path)
    make_images(tmp_path, {"cat": 3, "dog": 2})
    splits = folder.choose_splits(str(tmp_path))
    assert tuple(splits.values()) == ("all[:-2]", "all[-2:-1]", "all[-1:]")
    c = make_config(tmp_path, **{f"data.{key}": split for key, split in splits.items()})
    assert [len(source) for source in data.splits(c).values()] == [3, 1, 1]
    assert set(data.make(c, splits["train"]).labels) == {0, 1}


def test_own_images_follows_from_the_images(tmp_path):
    def adapted(recipe, count, **values):
        c = recipe.get_config()
        c.data.dir = str(make_images(tmp_path / f"{count}", {"cat": count, "dog": count}))
        c.update_from_flattened_dict(values)
        recipe.adapt(c, set(values), None)
        return Plan(c)

    plan = adapted(own_images, 50)
    c = plan.config
    assert (c.model.variant, c.model.image, c.batch_size) == ("Ti/4", 32, 8)
    assert (plan.total, plan.warmup, plan.intervals["eval_every"]) == (2000, 200, 200)
    assert c.optim.lr == float(f"{1e-3 * (8 / 256) ** 0.5:.3g}")
    changed = adapted(own_images, 50, batch_size=16, total_steps="20").config
    assert (changed.batch_size, changed.total_steps, changed.optim.warmup) == (16, "20", "2")
    assert adapted(dino_own_images, 50).config.evaluators == ("knn",)
    flat = make_images(tmp_path / "flat", {".": 12})
    c = dino_own_images.get_config()
    c.data.dir = str(flat)
    dino_own_images.adapt(c, set(), None)
    assert c.evaluators == () and len(Plan(c).sources["train"]) == 12


def test_data_are_part_of_a_run(tmp_path):
    """Moving the data changes nothing; other classes, files or counts are refused."""
    root = make_images(tmp_path / "data", {"train/cat": 4, "train/dog": 4, "val/dog": 4})
    make_images(root, {"test/cat": 2, "test/dog": 2, "other/cat": 3})
    workdir = tmp_path / "run"
    devices = jax.devices()[:1]
    c = make_config(root)
    first = train.train(c, workdir, devices=devices)
    files = {p: p.read_bytes() for p in workdir.iterdir() if p.is_file()}

    moved = root.rename(tmp_path / "moved")
    os.utime(moved / "train/cat/0.png", (0, 0))
    c = make_config(moved)
    assert train.train(c, workdir, devices=devices) == first
    assert files == {p: p.read_bytes() for p in workdir.iterdir() if p.is_file()}

    def message(config=c):
        with pytest.raises(UserError) as error:
            train.prepare(config, workdir)
        return str(error.value)

    make_images(moved, {"train/ant": 4})
    assert "trained on 2 classes (cat, dog), but the data have 3 (ant, cat, dog)" in message()
    # The run still evaluates with its own classes.
    model = inference.load(str(workdir))
    model.config.data.dir = str(moved)
    assert data.make(model.config, "val").class_names == ["cat", "dog"]
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), devices=devices)
    score = evaluators.make(("accuracy",), model.model, model.config, "test", mesh)(model.params)
    assert score["acc1"] == first["eval/test/acc1"]
    shutil.rmtree(moved / "train/ant")
    make_images(moved, {"train/cat": 5})
    assert "had 8 images when the run was started, and has 9 now" in message()
    (moved / "train/cat/4.png").unlink()
    Image.new("RGB", (9, 9)).save(moved / "train/cat/0.png")
    assert "names or sizes changed" in message()
    make_images(moved, {"train/cat": 1})
    train.prepare(c, workdir)

    # Another test split: only the test is run again.
    c = make_config(moved, **{"data.test": "other"})
    result = train.train(c, workdir, devices=devices)
    assert result["eval/test/images"] == 3 and result["step"] == first["step"]
    rows = log.read_metrics(workdir)
    assert sum("train/loss" in row for row in rows) == 1
    assert [row["eval/test/images"] for row in rows if "eval/test/images" in row] == [4, 3]
    assert train.train(c, workdir, devices=devices) == result
    # New images in the test split, too.
    make_images(moved, {"other/dog": 2})
    assert train.train(c, workdir, devices=devices)["eval/test/images"] == 5


def test_a_run_says_that_the_code_changed(tmp_path, capsys):
    c = tiny(digits.get_config())
    c.loggers = ()
    with pytest.raises(Exception, match="preempted"):
        train.train(c, tmp_path, StopAfter(0), jax.devices()[:1])
    record = json.loads((tmp_path / "run.json").read_text())
    record["versions"]["jax"] = "0.0.1"
    (tmp_path / "run.json").write_text(json.dumps(record))
    capsys.readouterr()
    train.train(c, tmp_path, devices=jax.devices()[:1])
    assert f"note: jax {jax.__version__}; the previous start had 0.0.1" in capsys.readouterr().out


def test_unreadable_images_are_replaced_and_reported(tmp_path, capsys):
    root = make_images(tmp_path, {"train/cat": 6, "train/dog": 6, "val/dog": 2, "test/cat": 1})
    broken = root / "train/cat/3.png"
    broken.write_bytes(b"not an image")
    view = lambda image, rng: image  # noqa: E731, ARG005
    options = dict(seed=0, batch_size=4, threads=1)
    source = data.make(make_config(root), "train")
    with pytest.raises(UserError, match="3.png"):
        batches = train_batches(source, view, **options)
        [next(batches) for _ in range(3)]
    source = data.make(make_config(root, **{"data.on_error": "skip"}), "train")
    batches = train_batches(source, view, **options)
    rows = [next(batches) for _ in range(6)]  # two epochs
    batches.close()
    assert all(batch.keys() == {"image", "label"} for batch in rows)
    for batch in rows:  # the label is that of the replacement
        expected = {COLORS["cat"]: 0, COLORS["dog"]: 1}
        colors = [tuple(image[0, 0].tolist()) for image in batch["image"]]
        assert [expected[color] for color in colors] == batch["label"].tolist()
    error = capsys.readouterr().err
    assert error.count("3.png") == 1 and list(source.replaced.values()) == [
        error.removeprefix("warning: ").partition("; using")[0]
    ]
    again = train_batches(
        data.make(make_config(root, **{"data.on_error": "skip"}), "train"), view, **options
    )
    np.testing.assert_array_equal(next(again)["image"], rows[0]["image"])
    again.close()


def test_balance(tmp_path):
    root = make_images(tmp_path, {"train/cat": 2, "train/dog": 30})
    source = data.make(make_config(root), "train")
    view = lambda image, rng: image  # noqa: E731, ARG005
    # n / (classes * count), whose mean over the images is 1.
    np.testing.assert_allclose(class_weights(source), [32 / 4, 32 / 60])
    batches = train_batches(source, view, seed=0, batch_size=32, threads=1, balance="loss")
    rows = next(batches)
    batches.close()
    np.testing.assert_allclose(rows["weight"], class_weights(source)[rows["label"]])
    batches = train_batches(source, view, seed=0, batch_size=32, threads=1, balance="sample")
    labels = np.concatenate([next(batches)["label"] for _ in range(20)])
    batches.close()
    # 640 draws with probability 1/2: the standard deviation of the mean is 0.02.
    assert abs(labels.mean() - 0.5) < 0.08


def test_small_batches_and_splits(tmp_path):
    """One image per batch, and on two processes; a training split with one image."""
    root = make_images(tmp_path, {"train/cat": 1, "train/dog": 1})
    view = lambda image, rng: image  # noqa: E731, ARG005
    for process_count, batch_size in ((1, 1), (2, 2)):
        source = data.make(make_config(root), "train")
        options = dict(seed=0, batch_size=batch_size, threads=1, process_count=process_count)
        labels = []
        for p in range(process_count):
            batches = train_batches(source, view, process_index=p, **options)
            labels.append([int(next(batches)["label"][0]) for _ in range(4)])
            batches.close()
        if process_count == 2:
            assert all(sorted(pair) == [0, 1] for pair in zip(*labels, strict=True))
        else:
            assert sorted(labels[0][:2]) == sorted(labels[0][2:]) == [0, 1]
    single = data.make(make_config(root), "train[:1]")
    batches = train_batches(single, view, seed=0, batch_size=1, threads=1)
    assert [next(batches)["image"].shape for _ in range(3)] == [(1, 8, 8, 3)] * 3
    batches.close()


def test_steps_per_epoch_of_deit():
    """DeiT's data loader has 1,251 batches of 1,024 per epoch of its 1,281,167 images."""
    c = deit.get_config("S")
    assert c.augment.repeats == 3 and c.batch_size == 1024
    assert data.steps_per_epoch(c, range(1_281_167)) == 1251
    c.augment.repeats = 1
    assert data.steps_per_epoch(c, range(1_281_167)) == pytest.approx(1251.14, abs=0.01)


def test_no_evaluation_just_before_the_last_step():
    c = tiny(digits.get_config())
    c.data.synthetic.images = 64
    c.total_steps, c.eval_every, c.log_every = "589", "49", "1"
    plan = Plan(c)
    evaluated = [step for step in range(1, 590) if plan.due(step, "eval_every")]
    assert evaluated == [*range(49, 540, 49), 589]
    assert all(plan.due(step, "log_every") for step in range(1, 590))
