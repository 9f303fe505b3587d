"""The Vision Transformer (ViT, arXiv:2010.11929)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax import variants
from vit_jax.errors import UserError
from vit_jax.layers.encoder import encode, make_blocks
from vit_jax.layers.heads import AttentionPool, pool_tokens
from vit_jax.layers.images import check_images
from vit_jax.layers.kernels import accumulation_dtype, add_bias
from vit_jax.layers.mlp import INITS, Linear
from vit_jax.layers.norms import LayerNorm
from vit_jax.layers.patch_embed import PatchEmbed, resize_positions, sincos2d
from vit_jax.schema import document_options
from vit_jax.variants import VARIANTS, ViTConfig

__all__ = ["VARIANTS", "ViT", "ViTConfig", "create", "functional", "image_keys"]


class ViT(nnx.Module):
    """Patch embedding, [CLS] token, position embedding, encoder, pooling and classifier.

    Image sizes other than `config.image` are supported: the position embedding is resized.

    Args:
      config: a `ViTConfig`.
      rngs: random number generators for initialization, such as `nnx.Rngs(params=0)`.
    """

    def __init__(self, config, *, rngs):
        self.config = c = config
        self.patch_embed = PatchEmbed(
            c.patch, c.channels, c.width, how=c.patch_embed, init=c.init, dtype=c.dtype, rngs=rngs
        )
        # Standard deviations of [CLS] and positions.
        unit = c.width**-0.5  # a norm of about 1
        cls_std, pos_std = {
            "deit": (0.02, 0.02),
            "big_vision": (0.0, unit),
            "xavier": (unit, unit),
        }[c.init]

        def normal(std, *shape):
            return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32))

        num_positions = math.prod(c.grid) + (0 if c.no_embed_class else c.prefix)
        self.cls_token = normal(cls_std, 1, 1, c.width) if c.prefix else None
        learned = c.pos_embed == "learned"
        self.pos_embed = normal(pos_std, 1, num_positions, c.width) if learned else None
        self.blocks = make_blocks(c, rngs=rngs)
        norm = LayerNorm(c.width, dtype=c.dtype)
        self.norm = None if c.norm_after_pool else norm
        self.fc_norm = norm if c.norm_after_pool else None
        self.attn_pool = AttentionPool(c, rngs=rngs) if c.pool == "map" else None
        # As in big_vision, a zero classifier initially predicts all classes with equal probability.
        head_init = INITS["deit"] if c.init == "deit" else nnx.initializers.zeros
        self.head = (
            Linear(
                c.width, c.num_classes, init=head_init, dtype=accumulation_dtype(c.dtype), rngs=rngs
            )
            if c.num_classes
            else None
        )

    def embed(self, images):
        """Embed images as tokens: [CLS] and patches, with positions added.

        Args:
          images: normalized images, float [b, h, w, c].

        Returns:
          Tokens [b, n, d].
        """
        c = self.config
        check_images(images, c.channels, c.patch)
        _, h, w, _ = images.shape
        return self.add_positions(self.patch_embed(images), (h // c.patch, w // c.patch))

    def add_positions(self, patches, grid):
        """Add positions to embedded patches and prepend [CLS].

        `embed` applies `patch_embed`, then `add_positions`. Patches may be replaced by mask tokens
        between the two, and tokens may be dropped between `add_positions` and `encode`.

        Args:
          patches: embedded patches in row-major order [b, h * w, d].
          grid: rows and columns of patches (h, w).

        Returns:
          Tokens [b, n, d].
        """
        c = self.config
        x = patches
        if self.pos_embed is None:
            x = x + sincos2d(grid, c.width).astype(c.dtype)
        elif c.no_embed_class:
            x = add_bias(x, self.positions(grid))
        if self.cls_token is not None:
            # Cast after broadcasting, so that the gradient is summed over the batch in float32.
            cls = jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, c.width)).astype(c.dtype)
            x = jnp.concatenate([cls, x], axis=1)
        if self.pos_embed is not None and not c.no_embed_class:
            x = add_bias(x, self.positions(grid))
        return x

    def positions(self, grid):
        """Return the learned positions [n, d] for a grid of patches, float32."""
        c = self.config
        table = self.pos_embed[...]
        prefix = table.shape[1] - math.prod(c.grid)  # positions of tokens other than patches
        return resize_positions(table, c.grid, grid, prefix, c.pos_resize)[0]

    def __call__(
        self, images, *, train=False, attention=False, blocks=False, tokens=True, rng=None
    ):
        """Run the model on a batch of images.

        Args:
          images: normalized images, float [b, h, w, c].
          train: whether to apply dropout and drop path.
          attention: whether to return the attention maps of every block.
          blocks: whether to return the output of every block.
          tokens: whether to return the tokens. Without them, a model with pool="cls" computes the
            last block for [CLS] only, which saves 1 / depth of the FLOPs, or a little less.
          rng: random key, required if train=True: one for the batch, or one per image [b].

        Returns:
          A dict of arrays:
            "logits": float32 (float64 for float64) [b, k], whatever dtype the activations have;
              absent if num_classes is 0.
            "pooled": input of the classifier [b, d].
            "tokens": encoder output [b, n, d], after the final norm unless it follows pooling.
            "attention": softmax of each head [l, b, heads, q, m], if attention=True.
            "blocks": output of each block [l, b, n, d], if blocks=True.

        Raises:
          UserError: if the images are not floats, have no batch axis or do not fit the model, or if
            train=True without a key.
        """
        read = None if tokens or attention or blocks else self._num_read
        (x,), out = self._encode(
            [self.embed(images)[:, None]], train, rng, attention, blocks, read=read
        )
        out = {name: groups[0] for name, groups in out.items()}
        all_tokens, out["pooled"] = self.pool(x[:, 0])
        if tokens:
            out["tokens"] = all_tokens
        if self.head is not None:
            out["logits"] = self.head(out["pooled"])
        return out

    def views(self, groups, *, train=False, rng=None):
        """Compute the pooled features of several views per image in one forward pass.

        Args:
          groups: normalized images [b, v, h, w, c], one array per image size.
          train: whether to apply dropout and drop path.
          rng: random key, required if train=True: one for the batch, or one per image [b].

        Returns:
          Pooled features [b, v, d], with the views of all groups concatenated in order.
        """
        tokens = []
        for group in groups:
            b, v = group.shape[:2]
            x = self.embed(group.reshape(b * v, *group.shape[2:]))
            tokens.append(x.reshape(b, v, *x.shape[1:]))
        groups, _ = self._encode(tokens, train, rng, read=self._num_read)
        pooled = [self.pool(x.reshape(-1, *x.shape[2:]))[1] for x in groups]
        pooled = [x.reshape(*g.shape[:2], -1) for x, g in zip(pooled, groups, strict=True)]
        return jnp.concatenate(pooled, axis=1)

    def encode(self, tokens, *, train=False, rng=None, attention=False, blocks=False):
        """Run the encoder blocks on tokens.

        Args:
          tokens: tokens [b, n, d], for any n.
          train: as in `__call__`.
          rng: as in `__call__`.
          attention: as in `__call__`.
          blocks: as in `__call__`.

        Returns:
          Tokens [b, n, d], before the final norm; and a dict with "attention" and "blocks" as
          requested.
        """
        (x,), outputs = self._encode([tokens[:, None]], train, rng, attention, blocks)
        return x[:, 0], {name: groups[0] for name, groups in outputs.items()}

    @property
    def _num_read(self):
        """Number of tokens that pooling reads, the first ones; None: all."""
        return 1 if self.config.pool == "cls" else None

    def _encode(self, groups, train, rng, attention=False, blocks=False, read=None):
        """Run the encoder blocks on groups of tokens [b, v, n, d]; see `encoder.encode`."""
        keys = None
        if train:
            if rng is None:
                raise UserError("train=True needs a random key; pass rng=jax.random.key(...)")
            keys = rng if rng.ndim else image_keys(rng, jnp.arange(groups[0].shape[0]))
        return encode(
            self.config,
            self.blocks,
            groups,
            keys=keys,
            attention=attention,
            outputs=blocks,
            read=read,
        )

    def pool(self, x):
        """Apply the final norm and pooling to the encoder's output.

        Args:
          x: output of the last block [b, n, d].

        Returns:
          Tokens [b, n, d], after the final norm unless it follows pooling; and pooled features
          [b, d].
        """
        tokens = x if self.norm is None else self.norm(x)
        pooled = (
            self.attn_pool(tokens)
            if self.attn_pool is not None
            else pool_tokens(tokens, self.config.pool, self.config.prefix)
        )
        return tokens, pooled if self.fc_norm is None else self.fc_norm(pooled)


@document_options(ViTConfig)
def create(name, *, num_classes=1000, seed=0, **overrides):
    """Create a randomly initialized ViT.

        model = create("S/16")
        model = create("B/16", image=384, pool="gap")

    Args:
      name: "S/16", or a timm name such as "vit_tiny_patch16_224"; see `variants.parse`.
      num_classes: number of classes; 0: no classifier.
      seed: random seed of the initialization.
      **overrides: options of `ViTConfig`.

    Raises:
      UserError: for an unknown name or option, or options that cannot be combined.
    """
    if variants.is_cnn(name):
        raise UserError(f"{name!r} is a ResNet; call vit_jax.resnet.create")
    base, named = variants.split_name(name)
    options = {"num_classes": num_classes} | named | overrides
    return ViT(variants.parse(base, **options), rngs=nnx.Rngs(params=seed))


def functional(model):
    """Split a model into a pure function and its weights, for use with jit, grad and vmap.

        apply, params = functional(vit.create("Ti/16"))

        def loss(params, images, labels, rng):
            logits = apply(params, images, train=True, rng=rng)["logits"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        gradient = jax.jit(jax.grad(loss))(params, images, labels, rng)

    Args:
      model: a `ViT` or a `ResNet`; it is not modified.

    Returns:
      The function apply(params, images, **options), which computes model(images, **options) with
      the given weights; and the weights, a nested dict of arrays. The weights of a ResNet include
      the running statistics, which are not trainable.
    """
    graph, state = nnx.split(model)

    def apply(params, images, **options):
        return nnx.merge(graph, params)(images, **options)

    return apply, nnx.to_pure_dict(state)


def image_keys(rng, rows):
    """Derive one key per image [b] from a key and the row indices of the images [b]."""
    return jax.vmap(jax.random.fold_in, (None, 0))(rng, rows)
