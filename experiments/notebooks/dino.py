# %% [markdown]
# # DINO: training without labels
#
# A student learns to say of one view of a digit what its teacher, its own moving average, says of
# another ([arXiv:2104.14294](https://arxiv.org/abs/2104.14294)). No label is used; what the
# features are worth is read out by their nearest neighbors, before and after.

# %%
# @title Settings
import os
import tempfile

import numpy as np
from IPython.display import display
from matplotlib.figure import Figure

from experiments.dino_fashion_mnist import baselines
from vit_jax import cli, data, evaluators, inference
from vit_jax.analysis import attention_maps
from vit_jax.data.pictures import open_images
from vit_jax.evaluators import knn
from vit_jax.figures.attention import attention_grid, panel
from vit_jax.figures.curves import curves
from vit_jax.run import Run
from vit_jax.workdir import log

epochs = 40  # @param {type:"integer"}

workdir = os.environ["WORKDIR"] = tempfile.mkdtemp(prefix="vit_jax-")
os.environ["EPOCHS"] = f"{epochs}ep"

# %% [markdown]
# ## Before
#
# `Run` makes a config real. Its weights before training are random, yet a random network keeps much
# of what an image is: this, and the raw pixels, are what training has to beat.

# %%
config = cli.load_recipe("configs/dino_digits.py")
run = Run(config)
features = {
    split: evaluators.features(run.model, config, split, run.mesh) for split in ("train", "test")
}


def score(weights):
    """The share of test images that their 20 nearest neighbors in the training split get right."""
    bank, queries = features["train"](weights), features["test"](weights)
    return knn.read_out(bank, queries, **config.knn)["knn20"]


untrained = run.weights(run.init())
bank, queries = (baselines.pixels(config, split) for split in ("train", "test"))
pixels = knn.read_out(bank, queries, **config.knn)["knn20"]
scores = {"raw pixels": pixels, "untrained": score(untrained)}
for name, value in scores.items():
    print(f"{name:12} {value:.1%}  {'█' * round(40 * value)}")

# %% [markdown]
# ## Train
#
# `configs/dino_digits.py`, for fewer epochs than it says. Each row has the teacher's entropy, that
# of its mean over the batch, and the spread of its features; were they to collapse, the run would
# say so, and which keys to change.

# %% language="bash"
# python -m vit_jax.train --config=configs/dino_digits.py --workdir=$WORKDIR \
#   --config.total_steps=$EPOCHS --config.log_every=40

# %%
display(curves(log.read_metrics(workdir)))

# %% [markdown]
# ## After
#
# The teacher is what is kept. On these digits raw pixels are hard to beat: all of them are in the
# same place and of the same size, which pixels make use of, and which DINO's crops hide.

# %%
after = inference.load(workdir)
scores["DINO"] = score(after.params)
for name, value in scores.items():
    print(f"{name:12} {value:.1%}  {'█' * round(40 * value)}")

# %% [markdown]
# The nearest neighbors themselves: on the left test images, beside each the six training images
# whose features, by the teacher, are most like its own. Another digit's is written in orange.

# %%
banks = {split: extract(after.params) for split, extract in features.items()}
unit = {
    split: bank["pooled"] / np.linalg.norm(bank["pooled"], axis=1, keepdims=True)
    for split, bank in banks.items()
}
similarities, neighbors = knn.nearest(unit["train"], unit["test"][:6], 6)
sources = {split: data.make(config, config.data[split]) for split in ("train", "test")}
figure = Figure(figsize=(7, 6), layout="constrained")
for i, axes in enumerate(figure.subplots(6, 7)):
    pictures = [sources["test"][i], *(sources["train"][j] for j in neighbors[i])]
    for axis, picture in zip(axes, pictures, strict=True):
        axis.imshow(picture["image"][..., 0], cmap="gray", vmin=0, vmax=255)
        axis.set_axis_off()
        right = picture["label"] == pictures[0]["label"]
        axis.set_title(picture["label"], fontsize=9, color="black" if right else "#D55E00")
display(figure)

# %% [markdown]
# ## What it looks at
#
# The attention of [CLS] in the last layer, before and after, on digits drawn larger still:
# positions are resized to the finer grid. Beside it the principal components of the patches'
# features.

# %%
after = after.replace(name=f"DINO, step {after.step:,}", image=32)
before = after.replace(name="untrained", params=untrained)
names = [f"test:{i}" for i in range(4)]
pictures, _ = open_images(names, config)
views = [after.view(picture.image) for picture in pictures]
seen = [attention_maps.extract(one, views, [after.depth]) for one in (before, after)]
panels = [panel(one, ["mean"], range(len(views))) for one in seen]
display(attention_grid(views, panels, titles=names, style="overlay"))

# %% [markdown]
# As a command: `python -m vit_jax.tools.attend --workdir=DIR --output=seen.png test:0 picture.png`.
