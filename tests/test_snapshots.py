"""Images for the loggers: their pixels, and when they are sent."""

import jax
import numpy as np

from configs import digits
from tests.tiny import tiny
from vit_jax import augment, snapshots
from vit_jax.run import Run


class Recorder:
    def __init__(self):
        self.images = []

    def image(self, step, tag, array):
        self.images.append((step, tag, array.shape))


def make_run(**values):
    c = tiny(digits.get_config())
    c.augment.rotate = c.augment.shift = c.augment.zoom = 0.0
    c.data.name = "digits"
    c.model.image = 8
    c.log_images = 3
    c.update_from_flattened_dict(values)
    return Run(c, jax.devices()[:1])


def tiles(grid, rows, columns, side):
    """Split a grid into images [rows, columns, side, side, c], without the gaps."""
    tile = side + snapshots.GAP
    assert grid.shape[:2] == (rows * tile, columns * tile) and grid.dtype == np.uint8
    return grid.reshape(rows, tile, columns, tile, -1).swapaxes(1, 2)[:, :, :side, :side]


def test_training_views_are_the_images_of_the_batch():
    run = make_run()
    batches = run.batches(0)
    rows = next(batches)
    batches.close()
    (images,) = tiles(snapshots.training_views(run, rows, 0), 1, 3, 64)
    np.testing.assert_array_equal(images[:, ::8, ::8], rows["image"][:3])


def test_attention_maps_dim_the_images():
    run = make_run()
    weights = run.weights(run.init())
    source, (_, view) = run.plan.sources["val"], augment.transforms(run.config)
    images = np.stack([view(source[i]["image"]) for i in range(3)])
    normalized = augment.normalize(images, run.config.data.mean, run.config.data.std)
    softmax = np.asarray(run.model.apply(weights, normalized, attention=True)["attention"])
    maps = softmax[-1].mean((1, 2)).reshape(3, 4, 4)  # no [CLS]: the mean over heads and queries
    maps /= maps.max((1, 2), keepdims=True)
    originals, dimmed = tiles(snapshots.attention_maps(run)(weights), 2, 3, 64)
    np.testing.assert_array_equal(originals[:, ::8, ::8], images)
    expected = images * maps.repeat(2, 1).repeat(2, 2)[..., None]
    assert np.abs(dimmed[:, ::8, ::8] - expected).max() <= 0.51


def test_snapshots_are_sent_if_there_are_loggers():
    run = make_run()
    rows = {"image": np.zeros((4, 8, 8, 1), np.uint8), "label": np.zeros(4, np.int32)}
    recorder = Recorder()
    sent = snapshots.Snapshots(run, recorder)
    sent.log_batch(0, rows)
    sent.log_attention(5, run.weights(run.init()))
    assert recorder.images == [
        (0, "train/images", (66, 198, 1)),
        (5, "eval/attention", (132, 198, 1)),
    ]
    for values in ({"loggers": ()}, {"log_images": 0}):
        run.config.update_from_flattened_dict(values)
        off = snapshots.Snapshots(run, recorder)
        off.log_batch(0, rows)
        off.log_attention(5, None)
    assert len(recorder.images) == 2
    cnn = {"variant": "resnet8", "depth": None, "pool": "cls", "init": "deit"}
    cnn = make_run(**{f"model.{key}": value for key, value in cnn.items()})
    assert snapshots.attention_maps(cnn) is None
