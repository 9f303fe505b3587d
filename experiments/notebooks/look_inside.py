# %% [markdown]
# # Inspect a model
#
# Train a small Vision Transformer on the digits dataset of scikit-learn and inspect it: attention
# maps of all layers and heads, attention rollout, attention distance, position embeddings, and the
# similarity of patch features.

# %%
# @title Settings
import math
import tempfile
from pathlib import Path

import numpy as np
from IPython.display import Image, display

from vit_jax import cli, inference
from vit_jax.analysis import (
    attention,
    attention_maps,
    logit_lens,
    receptive_field,
    weight_stats,
)
from vit_jax.data.pictures import open_images
from vit_jax.figures import internals
from vit_jax.figures.attention import attention_grid, panel
from vit_jax.figures.overlay import animate
from vit_jax.train import train

epochs = 15  # @param {type:"integer"}
first_image = 0  # @param {type:"integer"}
keep = 0.6  # @param {type:"slider", min:0.1, max:1, step:0.05}

workdir = tempfile.mkdtemp(prefix="vit_jax-")

# %% [markdown]
# ## Train a model
#
# The images are resized to 16 x 16 pixels, which gives 8 x 8 patches. The model uses a [CLS] token,
# whose attention shows which patches contribute to the prediction.

# %%
overrides = {
    "total_steps": f"{epochs}ep",
    "eval_every": f"{epochs}ep",
    "log_every": "50",
    "model.image": "16",
    "model.pool": "cls",
}
train(cli.build_config("configs/digits.py", overrides.items()), workdir)

# %% [markdown]
# A model returns named outputs. The attention of all layers and heads and the output of every block
# are optional, and cost nothing unless requested.

# %%
model = inference.load(workdir).replace(name="digits")
names = [f"test:{i}" for i in range(first_image, first_image + 4)]
pictures, _ = open_images(names, model.config)
views = [model.view(picture.image) for picture in pictures]
out = model.run(views, attention=True, blocks=True)
for name, array in out.items():
    print(f"{name:10} {array.shape}")

# %% [markdown]
# ## Attention
#
# The attention of [CLS], averaged over the heads. The outline contains the fraction `keep` of the
# attention.

# %%
depth, heads = model.depth, model.num_heads
layers = range(1, depth + 1)
inspection = attention_maps.extract(model, views, layers, with_rollout=True)
indices = range(len(views))
means = panel(inspection, ["mean"], indices)
display(attention_grid(views, [means], titles=names, keep=keep, style="overlay"))

# %% [markdown]
# All heads of the first image, one row per layer.

# %%
by_head = panel(inspection, list(range(heads)), [0], rows=range(depth))
titles = [names[0]] * depth
display(attention_grid([views[0]] * depth, [by_head], titles=titles, keep=keep, style="overlay"))

# %% [markdown]
# **Attention rollout** ([arXiv:2005.00928](https://arxiv.org/abs/2005.00928)) multiplies the
# attention matrices of the layers, each averaged with the identity for the residual connection. It
# estimates how much each patch contributes to [CLS] up to a layer. The **mask** shows only the
# patches that contain the fraction `keep` of the attention of the last layer.

# %%
rollout = panel(inspection, ["rollout"], indices)
display(attention_grid(views, [rollout], titles=names, keep=keep, style="map"))
last_layer = attention_maps.extract(model, views, [depth])
masks = panel(last_layer, ["mean", *range(heads)], indices)
display(attention_grid(views, [masks], titles=names, keep=keep, style="mask"))

# %% [markdown]
# The maps are an array [images, layers, heads, rows, columns]. They can be printed as numbers or as
# text, or animated with one frame per layer.

# %%
values = inspection.maps[0, -1].mean(0)
print(np.round(100 * values, 1))
print(attention.as_text(values))
print(attention.LEGEND)

# %%
frames = (
    attention_grid(
        [views[0]], [panel(inspection, ["mean", "max", "rollout"], [0], rows=[i])], style="overlay"
    )
    for i in range(depth)
)
animation = Path(workdir) / "layers.gif"
animate(animation, frames, fps=1)
display(Image(animation.read_bytes()))

# %% [markdown]
# From the command line: `python -m vit_jax.tools.attend --workdir=DIR --layers=all --heads=all
# --output=attention.png image.png`.
#
# ## Attention distance
#
# The mean attention distance and the attention entropy of each head, averaged over these images.
# The dashed line marks uniform attention.

# %%
grid = inspection.maps.shape[-2:]
patch = model.module.config.patch
prefix = model.module.config.prefix
softmax = out["attention"]
distances = receptive_field.attention_distance(softmax, grid, patch, prefix).mean(1)
entropies = receptive_field.attention_entropy(softmax, grid, prefix).mean(1)
even = receptive_field.uniform_distance(grid, patch)
display(internals.heads(distances, entropies, even, math.log2(grid[0] * grid[1])))

# %% [markdown]
# ## Position embeddings
#
# The cosine similarity of each position embedding to all others, arranged like the patches. They
# are initialized randomly. In large models, the rows and columns of the grid become visible (figure
# 7 of [arXiv:2010.11929](https://arxiv.org/abs/2010.11929)); after this short training, hardly.

# %%
cosines = weight_stats.position_similarity(weight_stats.positions(model.module))
display(internals.positions(cosines))
neighbors, all_pairs = weight_stats.neighbor_similarity(cosines)
print(f"mean cosine similarity: {neighbors:.3f} for neighbors, {all_pairs:.3f} for all pairs")

# %% [markdown]
# ## Patch features
#
# The similarity of each patch to [CLS] after the last block, and the first three principal
# components of the patches after every block, as red, green and blue. Patches with similar colors
# have similar features.

# %%
similarity = weight_stats.pooled_similarity(out["tokens"], grid, prefix)
colors = {
    f"layer {layer}": attention.pca(x[:, prefix:]).reshape(-1, *grid, 3)
    for layer, x in zip(layers, out["blocks"], strict=True)
}
display(internals.tokens(views, similarity, colors))

# %% [markdown]
# ## Logit lens
#
# The final norm and the classifier, applied to the output of every block: how the prediction
# develops, and how each patch alone is classified. From the command line:
# `python -m vit_jax.tools.attend --workdir=DIR --lens=lens.png image.png`.

# %%
lens = logit_lens.extract(model, views)
display(internals.logit_lens(views, lens, model.class_names, names))
