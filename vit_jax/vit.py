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
from vit_jax.layers.rope import coordinates
from vit_jax.schema import document_options
from vit_jax.variants import VARIANTS, ViTConfig

__all__ = ["VARIANTS", "ViT", "ViTConfig", "create", "functional", "image_keys"]


class ViT(nnx.Module):
    """Patch embedding, [CLS] and register tokens, positions, encoder, pooling and classifier.

    Image sizes other than `config.image` are supported: the position embedding is resized.

    Args:
      config: a `ViTConfig`.
      rngs: random number generators for initialization, such as `nnx.Rngs(params=0)`.
    """

    def __init__(self, config, *, rngs):
        self.config = c = config
        self.patch_embed = PatchEmbed(
            c.patch,
            c.channels,
            c.width,
            how=c.patch_embed,
            bias=c.patch_bias,
            init=c.init,
            dtype=c.dtype,
            rngs=rngs,
        )
        # Standard deviations of [CLS], and of positions and registers, which must differ.
        unit = c.width**-0.5  # a norm of about 1
        cls_std, pos_std = {
            "deit": (0.02, 0.02),
            "big_vision": (0.0, unit),
            "xavier": (unit, unit),
        }[c.init]

        def normal(std, *shape):
            return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32))

        def token(used):
            return normal(cls_std, 1, 1, c.width) if used else None

        def norm(used):
            return LayerNorm(c.width, eps=c.norm_eps, dtype=c.dtype) if used else None

        # As in big_vision, a zero classifier initially predicts all classes with equal probability.
        head_init = INITS["deit"] if c.init == "deit" else nnx.initializers.zeros

        def classifier(used):
            if not (used and c.num_classes):
                return None
            wide = accumulation_dtype(c.dtype)
            return Linear(c.num_features, c.num_classes, init=head_init, dtype=wide, rngs=rngs)

        self.cls_token = token(c.has_class_token)
        learned = c.pos_embed == "learned"
        num_positions = math.prod(c.grid) + c.pos_prefix
        self.pos_embed = normal(pos_std, 1, num_positions, c.width) if learned else None
        self.norm_pre = norm(c.embed_norm)
        self.blocks = make_blocks(c, rngs=rngs)
        self.norm = norm(not c.norm_after_pool)
        self.fc_norm = norm(c.norm_after_pool)
        self.attn_pool = AttentionPool(c, rngs=rngs) if c.pool == "map" else None
        representation = c.rep_size and c.num_classes
        make = dict(init=INITS[c.init], dtype=c.dtype, rngs=rngs)
        self.pre_logits = Linear(c.width, c.rep_size, **make) if representation else None
        self.head = classifier(True)
        # After the other parameters, so that these do not change their random initialization.
        self.dist_token = token(c.dist_token)
        self.reg_token = normal(pos_std, 1, c.reg_tokens, c.width) if c.reg_tokens else None
        self.head_dist = classifier(c.dist_token)

    def embed(self, images):
        """Embed images as tokens: [CLS], registers and patches, with positions added.

        Args:
          images: normalized images, float [b, h, w, c].

        Returns:
          Tokens [b, n, d].
        """
        check_images(images, self.config.channels, self.config.patch_size)
        return self.add_positions(self.patch_embed(images), self.grid(images))

    def grid(self, images):
        """Return the rows and columns of patches (h, w) of images [..., h, w, c]."""
        h, w, _ = images.shape[-3:]
        p, q = self.config.patch_size
        return h // p, w // q

    def add_positions(self, patches, grid):
        """Add positions to embedded patches, prepend the other tokens, and apply `embed_norm`.

        `embed` applies `patch_embed`, then `add_positions`. Patches may be replaced by mask tokens
        between the two, and tokens may be dropped between `add_positions` and `encode`.

        Args:
          patches: embedded patches in row-major order [b, h * w, d].
          grid: rows and columns of patches (h, w).

        Returns:
          Tokens [b, n, d], in the order [CLS], distillation token, registers, patches.
        """
        c = self.config
        tokens = [self.cls_token, self.dist_token, self.reg_token]
        tokens = [token[...] for token in tokens if token is not None]
        sizes = [token.shape[1] for token in tokens]
        # The first tokens have learned positions, the others have none.
        num_embedded = next(i for i in range(len(sizes) + 1) if sum(sizes[:i]) == c.pos_prefix)

        def repeat(tokens):
            # Cast after broadcasting, so that the gradient is summed over the batch in float32.
            shapes = [(patches.shape[0], *token.shape[1:]) for token in tokens]
            pairs = zip(tokens, shapes, strict=True)
            return [jnp.broadcast_to(token, shape).astype(c.dtype) for token, shape in pairs]

        x = patches
        if c.pos_embed == "sincos2d":
            x = x + sincos2d(grid, c.width).astype(c.dtype)
        if c.pos_prefix:
            x = jnp.concatenate([*repeat(tokens[:num_embedded]), x], axis=1)
        if c.pos_embed == "learned":
            x = add_bias(x, self.positions(grid))
        if rest := repeat(tokens[num_embedded:]):
            embedded = [x[:, : c.pos_prefix]] if c.pos_prefix else []
            x = jnp.concatenate([*embedded, *rest, x[:, c.pos_prefix :]], axis=1)
        return x if self.norm_pre is None else self.norm_pre(x)

    def positions(self, grid):
        """Return the learned positions [n, d] for a grid of patches, float32."""
        c = self.config
        return resize_positions(self.pos_embed[...], c.grid, grid, c.pos_prefix, c.pos_resize)[0]

    def coordinates(self, grid):
        """Return the coordinates of the tokens of a grid for RoPE [n, 2]; None without RoPE."""
        return None if self.config.rope == "none" else coordinates(self.config, grid)

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
              absent if num_classes is 0. With a distillation token, the mean of the logits of both
              classifiers; if train=True, those of [CLS].
            "logits_dist": logits of the distillation token [b, k], if train=True.
            "pooled": input of the classifier [b, d]; with a distillation token, the mean of both.
            "tokens": encoder output [b, n, d], after the final norm unless it follows pooling.
            "attention": softmax of each head [l, b, heads, q, m], if attention=True.
            "blocks": output of each block [l, b, n, d], if blocks=True.

        Raises:
          UserError: if the images are not floats, have no batch axis or do not fit the model, or if
            train=True without a key.
        """
        read = None if tokens or attention or blocks else self._num_read
        (x,), out = self._encode(
            [self.embed(images)[:, None]],
            [self.coordinates(self.grid(images))],
            train,
            rng,
            attention,
            blocks,
            read=read,
        )
        out = {name: groups[0] for name, groups in out.items()}
        all_tokens, out["pooled"] = self.pool(x[:, 0])
        if tokens:
            out["tokens"] = all_tokens
        if self.head_dist is not None:
            out["logits"], out["logits_dist"] = (
                self.head(all_tokens[:, 0]),
                self.head_dist(all_tokens[:, 1]),
            )
            if not train:
                out["logits"] = (out["logits"] + out.pop("logits_dist")) / 2
        elif self.head is not None:
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
        places = [self.coordinates(self.grid(group)) for group in groups]
        groups, _ = self._encode(tokens, places, train, rng, read=self._num_read)
        pooled = [self.pool(x.reshape(-1, *x.shape[2:]))[1] for x in groups]
        pooled = [x.reshape(*g.shape[:2], -1) for x, g in zip(pooled, groups, strict=True)]
        return jnp.concatenate(pooled, axis=1)

    def encode(
        self, tokens, *, coordinates=None, train=False, rng=None, attention=False, blocks=False
    ):
        """Run the encoder blocks on tokens.

        Args:
          tokens: tokens [b, n, d], for any n.
          coordinates: for RoPE: the rows of `coordinates(grid)` of these tokens, [n, 2] or
            [b, n, 2].
          train: as in `__call__`.
          rng: as in `__call__`.
          attention: as in `__call__`.
          blocks: as in `__call__`.

        Returns:
          Tokens [b, n, d], before the final norm; and a dict with "attention" and "blocks" as
          requested.
        """
        if (coordinates is None) != (self.config.rope == "none"):
            raise UserError("pass coordinates to encode if, and only if, the model has RoPE")
        (x,), outputs = self._encode(
            [tokens[:, None]], [coordinates], train, rng, attention, blocks
        )
        return x[:, 0], {name: groups[0] for name, groups in outputs.items()}

    @property
    def _num_read(self):
        """Number of tokens that pooling reads, the first ones; None: all."""
        return 1 + self.config.dist_token if self.config.pool == "cls" else None

    def _encode(self, groups, coordinates, train, rng, attention=False, blocks=False, read=None):
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
            coordinates=coordinates,
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
        if self.attn_pool is not None:
            pooled = self.attn_pool(
                tokens[:, self.config.prefix :]
            )  # as timm; the same without prefix
        elif self.dist_token is not None:
            pooled = tokens[:, :2].mean(axis=1)
        else:
            pooled = pool_tokens(tokens, self.config.pool, self.config.prefix)
        if self.fc_norm is not None:
            pooled = self.fc_norm(pooled)
        if self.pre_logits is not None:
            pooled = jnp.tanh(self.pre_logits(pooled))
        return tokens, pooled


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
