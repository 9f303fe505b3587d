# %% [markdown]
# # DINO: training without labels
#
# In DINO ([arXiv:2104.14294](https://arxiv.org/abs/2104.14294)), a student network learns to
# predict the output of a teacher on another view of the same image. The teacher is a moving average
# of the student. Training uses no labels. A k-NN classifier evaluates the features before and after
# training.

# %%
# @title Settings
import tempfile

import numpy as np
from IPython.display import display
from matplotlib.figure import Figure

from experiments.dino import baselines
from vit_jax import cli, data, evaluators, inference
from vit_jax.analysis import attention_maps
from vit_jax.data.pictures import open_images
from vit_jax.evaluators import knn
from vit_jax.figures.attention import attention_grid, panel
from vit_jax.figures.curves import curves
from vit_jax.run import Run
from vit_jax.train import train
from vit_jax.workdir import log

epochs = 40  # @param {type:"integer"}

workdir = tempfile.mkdtemp(prefix="vit_jax-")
overrides = {"total_steps": f"{epochs}ep", "log_every": "40"}

# %% [markdown]
# ## Baselines
#
# `Run` creates the model, data and optimizer of a config. The baselines are raw pixels and the
# untrained network, whose random features preserve much of the information in the image.

# %%
config = cli.build_config("configs/dino_digits.py", overrides.items())
run = Run(config)
features = {
    split: evaluators.features(run.model, config, split, run.mesh) for split in ("train", "test")
}


def score(weights):
    """Return the k-NN accuracy (k = 20) on the test split, with the training split as the bank."""
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
# The recipe is `configs/dino_digits.py`, with fewer epochs. Each row of the log has the entropy of
# the teacher's output, the entropy of its mean over the batch, and the standard deviation of the
# features. If they collapse, training prints a warning with the keys to change.

# %%
train(config, workdir)
display(curves(log.read_metrics(workdir)))

# %% [markdown]
# ## Results
#
# The evaluation uses the teacher. Raw pixels are a strong baseline on this dataset: all digits have
# the same position and size, which pixel features exploit and DINO's crops discard.

# %%
trained = inference.load(workdir)
scores["DINO"] = score(trained.params)
for name, value in scores.items():
    print(f"{name:12} {value:.1%}  {'█' * round(40 * value)}")

# %% [markdown]
# Nearest neighbors: each row shows a test image on the left, followed by the six training images
# with the most similar teacher features. Labels that differ from that of the test image are orange.

# %%
banks = {split: extract(trained.params) for split, extract in features.items()}
unit = {
    split: bank["pooled"] / np.linalg.norm(bank["pooled"], axis=1, keepdims=True)
    for split, bank in banks.items()
}
similarities, neighbors = knn.nearest(unit["train"], unit["test"][:6], 6)
sources = {split: data.make(config, config.data[split]) for split in ("train", "test")}
figure = Figure(figsize=(7, 6), layout="constrained")
for i, axes in enumerate(figure.subplots(6, 7)):
    examples = [sources["test"][i], *(sources["train"][j] for j in neighbors[i])]
    for axis, example in zip(axes, examples, strict=True):
        axis.imshow(example["image"][..., 0], cmap="gray", vmin=0, vmax=255)
        axis.set_axis_off()
        same_label = example["label"] == examples[0]["label"]
        axis.set_title(example["label"], fontsize=9, color="black" if same_label else "#D55E00")
display(figure)

# %% [markdown]
# ## Attention
#
# The attention of [CLS] in the last layer, before and after training. The images are upsampled to
# 32 x 32 pixels, so the position embeddings are resized to a finer grid. The colors next to the
# maps are the first principal components of the patch features.

# %%
trained = trained.replace(name=f"DINO, step {trained.step:,}", image=32)
before = trained.replace(name="untrained", params=untrained)
names = [f"test:{i}" for i in range(4)]
pictures, _ = open_images(names, config)
views = [trained.view(picture.image) for picture in pictures]
inspections = [attention_maps.extract(model, views, [trained.depth]) for model in (before, trained)]
panels = [panel(inspection, ["mean"], range(len(views))) for inspection in inspections]
display(attention_grid(views, panels, titles=names, style="overlay"))

# %% [markdown]
# From the command line:
# `python -m vit_jax.tools.attend --workdir=DIR --output=attention.png test:0 image.png`.
