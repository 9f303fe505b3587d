"""The Vision Transformer (arXiv:2010.11929): an image in, named outputs out."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax import variants
from vit_jax.errors import UserError
from vit_jax.layers.encoder import encode, make_blocks
from vit_jax.layers.heads import AttentionPool, pool_tokens
from vit_jax.layers.images import check_images
from vit_jax.layers.mlp import INITS, Linear
from vit_jax.layers.norms import LayerNorm
from vit_jax.layers.patch_embed import PatchEmbed, resize_positions, sincos2d
from vit_jax.schema import document_options
from vit_jax.variants import VARIANTS, ViTConfig

__all__ = ["VARIANTS", "ViT", "ViTConfig", "create", "functional", "image_keys"]


class ViT(nnx.Module):
    """Patches, [CLS], positions, encoder, pooling, classifier.

    `ViT(config, rngs=nnx.Rngs(params=0))`; the options are those of `ViTConfig`. Images of other
    sizes than config.image work too: positions are resized.
    """

    def __init__(self, config, *, rngs):
        self.config = c = config
        self.patch_embed = PatchEmbed(
            c.patch, c.channels, c.width, how=c.patch_embed, dtype=c.dtype, rngs=rngs
        )
        std = {"deit": 0.02, "big_vision": c.width**-0.5}[c.init]  # of the learned positions

        def normal(std, *shape):
            return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32))

        tokens = math.prod(c.grid) + (0 if c.no_embed_class else c.prefix)
        self.cls_token = normal(std, 1, 1, c.width) if c.prefix else None
        self.pos_embed = normal(std, 1, tokens, c.width) if c.pos_embed == "learned" else None
        self.blocks = make_blocks(c, rngs=rngs)
        norm = LayerNorm(c.width, dtype=c.dtype)
        self.norm = None if c.norm_after_pool else norm
        self.fc_norm = norm if c.norm_after_pool else None
        self.attn_pool = AttentionPool(c, rngs=rngs) if c.pool == "map" else None
        # big_vision's classifier starts at zero: all classes alike, whatever the features.
        head = {"deit": INITS["deit"], "big_vision": nnx.initializers.zeros}[c.init]
        self.head = (
            Linear(c.width, c.num_classes, init=head, dtype=c.dtype, rngs=rngs)
            if c.num_classes
            else None
        )

    def embed(self, images):
        """Normalized images b h w c -> tokens b n d, [CLS] and the patches with their positions."""
        c = self.config
        check_images(images, c.channels, c.patch)
        _, h, w, _ = images.shape
        return self.add_positions(self.patch_embed(images), (h // c.patch, w // c.patch))

    def add_positions(self, patches, grid):
        """Patches b n d, row by row in a grid (rows, columns) -> tokens with positions and [CLS].

        `embed` applies `patch_embed`, then `add_positions`. Patches may be replaced by mask tokens
        between the two, and tokens may be dropped between `add_positions` and `encode`.
        """
        c, x = self.config, patches
        if self.pos_embed is None:
            x = x + sincos2d(grid, c.width).astype(c.dtype)
        elif c.no_embed_class:
            x = x + self.positions(grid)
        if self.cls_token is not None:
            cls = jnp.broadcast_to(self.cls_token[...].astype(c.dtype), (x.shape[0], 1, c.width))
            x = jnp.concatenate([cls, x], axis=1)
        if self.pos_embed is not None and not c.no_embed_class:
            x = x + self.positions(grid)
        return x

    def positions(self, grid):
        """Learned positions [1, tokens, d] for a grid of patches, in the dtype of activations."""
        c, table = self.config, self.pos_embed[...]
        prefix = table.shape[1] - math.prod(c.grid)  # rows that belong to no patch
        return resize_positions(table, c.grid, grid, prefix, c.pos_resize).astype(c.dtype)

    def __call__(self, images, *, train=False, attention=False, blocks=False, rng=None):
        """Compute named outputs of images.

        Args:
          images: normalized float [b, h, w, c]. Positions are resized to sizes other than
            config.image.
          train: turns dropout and drop path on.
          attention: adds "attention" [l, b, h, q, m], the softmax of every block.
          blocks: adds "blocks" [l, b, n, d], the output of every block.
          rng: with train=True one key, or one key per image [b].

        Returns:
          A dict: "logits" float32 [b, k] (missing where num_classes is 0); "pooled" [b, d], what
          the classifier sees; "tokens" [b, n, d], after the last norm if it comes before pooling.

        Raises:
          UserError: for images that are not floats, have no batch axis, or do not fit the model.
        """
        x, out = self.encode(
            self.embed(images), train=train, rng=rng, attention=attention, blocks=blocks
        )
        out["tokens"], out["pooled"] = self.read(x)
        if self.head is not None:
            out["logits"] = self.head(out["pooled"]).astype(jnp.float32)
        return out

    def views(self, groups, *, train=False, rng=None):
        """Several views of each image, of several sizes, in one pass: a list of arrays b v h w c,
        one a size -> pooled [b, V, d], all V views in order. train and rng as in a plain call."""
        tokens = []
        for group in groups:
            b, v = group.shape[:2]
            x = self.embed(group.reshape(b * v, *group.shape[2:]))
            tokens.append(x.reshape(b, v, *x.shape[1:]))
        groups, _ = self._encode(tokens, train, rng)
        if self.config.pool == "cls":  # the final norm is needed of this one token alone
            groups = [x[:, :, :1] for x in groups]
        pooled = [self.read(x.reshape(-1, *x.shape[2:]))[1] for x in groups]
        pooled = [x.reshape(*g.shape[:2], -1) for x, g in zip(pooled, groups, strict=True)]
        return jnp.concatenate(pooled, axis=1)

    def encode(self, tokens, *, train=False, rng=None, attention=False, blocks=False):
        """Tokens b n d, any number of them, through all blocks -> tokens b n d, and a dict of what
        else was asked for. Arguments as in a plain call."""
        (x,), named = self._encode([tokens[:, None]], train, rng, attention, blocks)
        return x[:, 0], {name: groups[0] for name, groups in named.items()}

    def _encode(self, groups, train, rng, attention=False, blocks=False):
        """Arrays of tokens b v n d -> the same after the last block, and what was asked for."""
        keys = None
        if train:
            if rng is None:
                raise UserError("train=True draws noise; pass rng=jax.random.key(...)")
            keys = rng if rng.ndim else image_keys(rng, jnp.arange(groups[0].shape[0]))
        return encode(
            self.config, self.blocks, groups, keys=keys, attention=attention, outputs=blocks
        )

    def read(self, x):
        """Tokens b n d after the last block -> tokens after the last norm, pooled [b, d]."""
        tokens = x if self.norm is None else self.norm(x)
        pooled = (
            self.attn_pool(tokens)
            if self.attn_pool is not None
            else pool_tokens(tokens, self.config.pool, self.config.prefix)
        )
        return tokens, pooled if self.fc_norm is None else self.fc_norm(pooled)


@document_options(ViTConfig)
def create(name, *, num_classes=1000, seed=0, **overrides):
    """Create a randomly initialized model: create("S/16"), create("B/16", image=384, pool="gap").

    Args:
      name: "S/16" or timm's, such as "vit_tiny_patch16_224"; see `variants.parse`.
      num_classes: outputs of the classifier; 0: none.
      seed: of the weights.
      **overrides: options of `ViTConfig`.

    Raises:
      UserError: for an unknown name or option, or options that cannot be combined.
    """
    if variants.is_cnn(name):
        raise UserError(f"{name} is a ResNet; use vit_jax.resnet.create")
    base, named = variants.split_name(name)
    options = {"num_classes": num_classes} | named | overrides
    return ViT(variants.parse(base, **options), rngs=nnx.Rngs(params=seed))


def functional(model):
    """Split a model into a pure function and its weights, for jit, grad, vmap and training loops.

        apply, params = functional(vit.create("Ti/16"))

        def loss(params, images, labels, rng):
            logits = apply(params, images, train=True, rng=rng)["logits"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        gradient = jax.jit(jax.grad(loss))(params, images, labels, rng)

    Args:
      model: a `ViT` or a `ResNet`. It is not changed.

    Returns:
      apply(params, images, **options), which is model(images, **options) with these weights; and
      the weights, a nested dict of arrays. Those of a ResNet hold the running statistics too, which
      are not trained.
    """
    graph, state = nnx.split(model)

    def apply(params, images, **options):
        return nnx.merge(graph, params)(images, **options)

    return apply, nnx.to_pure_dict(state)


def image_keys(rng, rows):
    """One key per image, from its row number in the batch [b]. -> keys [b]"""
    return jax.vmap(jax.random.fold_in, (None, 0))(rng, rows)
