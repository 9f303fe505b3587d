# %% [markdown]
# # Look inside
#
# What a small Vision Transformer has learned on scikit-learn's digits: where its heads look, layer
# by layer; how attention adds up over the layers; which patches count; what its positions
# are; how alike its patches are.

# %%
# @title Settings
import math
import os
import tempfile
from pathlib import Path

import numpy as np
from IPython.display import Image, display

from vit_jax import inference
from vit_jax.analysis import attention, attention_maps, receptive_field, weight_stats
from vit_jax.data.pictures import open_images
from vit_jax.figures import internals as drawn
from vit_jax.figures.attention import attention_grid, panel
from vit_jax.figures.overlay import animate

epochs = 15  # @param {type:"integer"}
first_image = 0  # @param {type:"integer"}
keep = 0.6  # @param {type:"slider", min:0.1, max:1, step:0.05}

workdir = os.environ["WORKDIR"] = tempfile.mkdtemp(prefix="vit_jax-")
os.environ["EPOCHS"] = f"{epochs}ep"

# %% [markdown]
# ## A model to look at
#
# The digits are drawn twice as large as they are, so that there are 8 x 8 patches, and a [CLS]
# token is read out, whose attention says what the answer is made of.

# %% language="bash"
# python -m vit_jax.train --config=configs/digits.py --workdir=$WORKDIR \
#   --config.total_steps=$EPOCHS --config.eval_every=$EPOCHS --config.log_every=50 \
#   --config.model.image=16 --config.model.pool=cls

# %% [markdown]
# A model returns what it computed on the way by name: the attention of all layers and heads, and
# the output of every block, are there if asked for, and cost nothing if not.

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
# What [CLS] attends to, the mean over the heads. The outline holds the share `keep` of it.

# %%
depth, heads = model.depth, model.num_heads
layers = range(1, depth + 1)
seen = attention_maps.extract(model, views, layers, with_rollout=True)
every = range(len(views))
display(
    attention_grid(views, [panel(seen, ["mean"], every)], titles=names, keep=keep, style="overlay")
)

# %% [markdown]
# Each head by itself, a row a layer.

# %%
one = panel(seen, list(range(heads)), [0], rows=range(depth))
display(
    attention_grid([views[0]] * depth, [one], titles=[names[0]] * depth, keep=keep, style="overlay")
)

# %% [markdown]
# **Rollout** multiplies the layers up, with half of every token carried on by the residual
# connection: how much of each patch has come into [CLS] by then
# ([arXiv:2005.00928](https://arxiv.org/abs/2005.00928)). The **mask** is the image in the patches
# that hold the share `keep` of the last layer's attention.

# %%
rolled = panel(seen, ["rollout"], every)
display(attention_grid(views, [rolled], titles=names, keep=keep, style="map"))
last = attention_maps.extract(model, views, [depth])
masks = panel(last, ["mean", *range(heads)], every)
display(attention_grid(views, [masks], titles=names, keep=keep, style="mask"))

# %% [markdown]
# Maps are arrays, [images, layers, heads, rows, columns]: to be read as numbers or as text, or to
# be animated, a frame a layer.

# %%
values = seen.maps[0, -1].mean(0)
print(np.round(100 * values, 1))
print(attention.as_text(values))
print(attention.LEGEND)

# %%
frames = (
    attention_grid(
        [views[0]], [panel(seen, ["mean", "max", "rollout"], [0], rows=[i])], style="overlay"
    )
    for i in range(depth)
)
film = Path(workdir) / "layers.gif"
animate(film, frames, fps=1)
display(Image(film.read_bytes()))

# %% [markdown]
# As a command: `python -m vit_jax.tools.attend --workdir=DIR --layers=all --heads=all
# --output=seen.png picture.png`.
#
# ## How far heads look
#
# The distance between a patch and what it attends to, the mean over these images, and the entropy
# of its attention: a head that looks everywhere alike lies on the dashed line.

# %%
grid, patch, prefix = seen.maps.shape[-2:], model.module.config.patch, model.module.config.prefix
softmax = out["attention"]
distances = receptive_field.attention_distance(softmax, grid, patch, prefix).mean(1)
entropies = receptive_field.attention_entropy(softmax, grid, prefix).mean(1)
even = receptive_field.even_distance(grid, patch)
display(drawn.heads(distances, entropies, even, math.log2(grid[0] * grid[1])))

# %% [markdown]
# ## Positions
#
# The embedding of each position beside all others, laid out as the patches are. They begin at
# random; in large models the rows and columns of the image show (figure 7 of
# [arXiv:2010.11929](https://arxiv.org/abs/2010.11929)), and after so short a training little of it.

# %%
similar = weight_stats.position_similarity(weight_stats.positions(model.module))
display(drawn.positions(similar))
near, every_pair = weight_stats.neighbor_similarity(similar)
print(f"mean cosine of neighbors {near:.3f}, of all pairs {every_pair:.3f}")

# %% [markdown]
# ## Patches
#
# How alike each patch is to [CLS] after the last block, and the first three principal components of
# the patches after every block, as red, green and blue: patches of one color are alike.

# %%
similarity = weight_stats.pooled_similarity(out["tokens"], grid, prefix)
colors = {
    f"layer {layer}": attention.pca(x[:, prefix:]).reshape(-1, *grid, 3)
    for layer, x in zip(layers, out["blocks"], strict=True)
}
display(drawn.tokens(views, similarity, colors))
