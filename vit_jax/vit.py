"""The Vision Transformer (arXiv:2010.11929): an image in, named outputs out."""

from inspect import signature

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax import variants
from vit_jax.encoder import INITS, LayerNorm, Linear, encode, make_blocks
from vit_jax.heads import AttentionPool, pool_tokens
from vit_jax.patch_embed import PatchEmbed, resize_positions, sincos2d
from vit_jax.variants import VARIANTS  # noqa: F401  the table of sizes, where people look for it


class ViT(nnx.Module):
    """Patches, [CLS], positions, encoder, pooling, classifier.

    `image` and `patch` are sides in pixels; other image sizes work too, positions are resized.
    num_classes=0 leaves out the classifier. fc_norm: the last LayerNorm comes after pooling
    instead of before it; None: where the pool is "gap", as in timm. The other arguments are
    described in configs/common.py under `model`.
    """

    def __init__(
        self,
        *,
        width,
        depth,
        num_heads,
        mlp_dim,
        patch,
        image=224,
        channels=3,
        num_classes=1000,
        pool="cls",
        class_token=None,
        fc_norm=None,
        pos_embed="learned",
        pos_resize="timm",
        patch_embed="conv",
        norm="pre",
        act="gelu",
        qkv_bias=True,
        drop_path=0.0,
        dropout=0.0,
        remat="none",
        scan="auto",
        attn="auto",
        init="deit",
        dtype="float32",
        rngs,
    ):
        self.dtype = dtype = jnp.dtype(dtype)
        self.pool, self.patch, self.image, self.channels = pool, patch, image, channels
        self.num_classes, self.width, self.pos_resize = num_classes, width, pos_resize
        class_token = pool == "cls" if class_token is None else class_token
        if pool == "cls" and not class_token:
            raise ValueError("pool=cls needs the class token; set class_token=True or pool=gap")
        self.prefix = int(class_token)  # tokens before the patches
        self.patch_embed = PatchEmbed(
            patch, channels, width, how=patch_embed, dtype=dtype, rngs=rngs
        )
        std = {"deit": 0.02, "big_vision": width**-0.5}[init]  # of the learned positions

        def normal(std, *shape):
            return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32))

        tokens = self.prefix + (image // patch) ** 2
        self.cls_token = normal(std, 1, 1, width) if class_token else None
        self.pos_embed = normal(std, 1, tokens, width) if pos_embed == "learned" else None
        self.blocks = make_blocks(
            depth,
            width,
            num_heads,
            mlp_dim,
            norm=norm,
            act=act,
            qkv_bias=qkv_bias,
            dropout=dropout,
            attn=attn,
            init=init,
            dtype=dtype,
            rngs=rngs,
        )
        self.run = dict(drop_path=drop_path, remat=remat, scan=scan)
        fc_norm = pool == "gap" if fc_norm is None else fc_norm
        self.norm = None if fc_norm else LayerNorm(width, dtype=dtype)
        self.fc_norm = LayerNorm(width, dtype=dtype) if fc_norm else None
        self.attn_pool = (
            AttentionPool(
                width, num_heads, mlp_dim, act=act, init=INITS[init], dtype=dtype, rngs=rngs
            )
            if pool == "map"
            else None
        )
        # big_vision's classifier starts at zero: all classes alike, whatever the features.
        head = {"deit": INITS["deit"], "big_vision": nnx.initializers.zeros}[init]
        self.head = (
            Linear(width, num_classes, init=head, dtype=dtype, rngs=rngs) if num_classes else None
        )

    def embed(self, images):
        """b h w c, normalised -> tokens b n d with [CLS] and positions."""
        b, h, w, _ = images.shape
        grid = (h // self.patch, w // self.patch)
        x = self.patch_embed(images)
        if self.pos_embed is None:
            x = x + sincos2d(grid, self.width).astype(self.dtype)
        if self.cls_token is not None:
            cls = jnp.broadcast_to(self.cls_token[...].astype(self.dtype), (b, 1, self.width))
            x = jnp.concatenate([cls, x], axis=1)
        if self.pos_embed is not None:
            side = self.image // self.patch
            table = resize_positions(
                self.pos_embed[...], (side, side), grid, self.prefix, self.pos_resize
            )
            x = x + table.astype(self.dtype)
        return x

    def __call__(self, images, *, train=False, attention=False, blocks=False, rng=None):
        """images b h w c, normalised -> a dict of what was computed on the way.

        logits [b, k] (none where num_classes is 0); pooled [b, d], what the classifier sees;
        tokens [b, n, d] after the last norm, where it comes before pooling; and if asked for
        blocks [l, b, n, d], the output of each block, and attention [l, b, h, q, m], its softmax.
        train=True switches dropout and drop path on; rng is then one key, or one an image [b].
        """
        (x,), named = self.encode(
            [images[:, None]], train=train, rng=rng, attention=attention, outputs=blocks
        )
        out = {name: groups[0] for name, groups in named.items()}
        out["tokens"], out["pooled"] = self.read(x[:, 0])
        if self.head is not None:
            out["logits"] = self.head(out["pooled"]).astype(jnp.float32)
        return out

    def views(self, groups, *, train=False, rng=None):
        """Several views of each image, of several sizes, in one pass: a list of arrays b v h w c,
        one a size -> pooled [b, V, d], V all views in order. train and rng as in a plain call."""
        groups, _ = self.encode(groups, train=train, rng=rng)
        if self.pool == "cls":  # the last norm needs to be taken of this one token alone
            groups = [x[:, :, :1] for x in groups]
        pooled = [self.read(x.reshape(-1, *x.shape[2:]))[1] for x in groups]
        pooled = [x.reshape(*g.shape[:2], -1) for x, g in zip(pooled, groups, strict=True)]
        return jnp.concatenate(pooled, axis=1)

    def encode(self, groups, *, train=False, rng=None, attention=False, outputs=False):
        """Arrays b v h w c -> tokens b v n d after the last block, and what else was asked for."""
        channels = groups[0].shape[-1]
        if channels != self.channels:
            raise ValueError(f"images have {channels} channels, the model {self.channels}")
        keys = None
        if train:
            if rng is None:
                raise ValueError("train=True draws noise: pass rng=jax.random.key(...)")
            keys = rng if rng.ndim else image_keys(rng, jnp.arange(groups[0].shape[0]))
        tokens = []
        for group in groups:
            b, v = group.shape[:2]
            x = self.embed(group.reshape(b * v, *group.shape[2:]))
            tokens.append(x.reshape(b, v, *x.shape[1:]))
        return encode(
            self.blocks, tokens, attention=attention, outputs=outputs, keys=keys, **self.run
        )

    def read(self, x):
        """Tokens b n d after the last block -> tokens after the last norm, pooled [b, d]."""
        tokens = x if self.norm is None else self.norm(x)
        pooled = (
            self.attn_pool(tokens)
            if self.attn_pool is not None
            else pool_tokens(tokens, self.pool, self.prefix)
        )
        return tokens, pooled if self.fc_norm is None else self.fc_norm(pooled)


def create(name, *, num_classes=1000, seed=0, **overrides):
    """A freshly initialised model by name: create("S/16"), create("vit_tiny_patch16_224", depth=4).

    Overrides are the arguments of `ViT`. Raises ValueError for an unknown name or argument.
    """
    options = {"num_classes": num_classes, **arguments(variants.parse(name, **overrides))}
    return ViT(**options, rngs=nnx.Rngs(params=seed))


def image_keys(rng, rows):
    """One key an image, from its row number in the batch [b]. -> keys [b]"""
    return jax.vmap(jax.random.fold_in, (None, 0))(rng, rows)


def arguments(options):
    """The same options, if all are arguments of `ViT`. Raises ValueError."""
    known = set(signature(ViT.__init__).parameters) - {"self", "rngs"}
    for name in options:
        if name not in known:
            known = ", ".join(sorted(known))
            raise ValueError(f"the model has no option '{name}'; it has {known}")
    return options
