"""Device mesh and sharding rules.

The batch is sharded over the mesh axes `data` and `fsdp`. Parameters are replicated over `data`,
and sharded over `fsdp` and `tensor`, where `tensor` splits attention heads, hidden units and
classes. The sharding of an array is determined by its path. The paths of optimizer state and moving
averages end in the paths of their parameters, so that they are sharded alike.
"""

import math
import re

import jax
import numpy as np
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
# (pattern of a path, array axis sharded over `tensor`): attention heads, hidden units and classes
# (Megatron-LM, arXiv:1909.08053, section 3).
TENSOR_RULES = (
    (r"attn/qkv/(kernel|bias)$", -1),
    (r"attn/proj/kernel$", -2),
    (r"attn/rope/freqs$", -2),
    (r"mlp/fc1/(kernel|bias)$", -1),
    (r"mlp/fc2/kernel$", -2),
    (r"(^|/)head(_dist)?/(kernel|bias)$", -1),
    (r"(^|/)head/fc[12]/(kernel|bias)$", -1),
    (r"(^|/)last_layer/(kernel|scale)$", -1),
    (r"(^|/)center$", -1),
)
MIN_FSDP_ELEMENTS = 4096  # for smaller arrays, communication costs more than sharding saves
# Not sharded over `fsdp`: the TPU compiler of JAX 0.10 (libtpu 0.0.42) fails on learned positions
# in eight shards, "The shape doesn't match when replacing 'dynamic-slice'".
NOT_FSDP = re.compile(r"(^|/)pos_embed$")


def make_mesh(config, devices=None):
    """Create a device mesh.

    Args:
      config: sizes of the mesh axes, such as `config.mesh`; -1: the remaining devices.
      devices: devices of the mesh; None: all.

    Returns:
      A mesh with the axes `AXES`.

    Raises:
      UserError: if the sizes do not match the number of devices, or as in `arrange`.
    """
    devices = jax.devices() if devices is None else devices
    shape = [config[axis] for axis in AXES]
    count = len(devices)
    if -1 in shape:
        rest = int(np.prod([n for n in shape if n != -1]))
        shape[shape.index(-1)] = max(count // rest, 1)
    required = int(np.prod(shape))
    if required != count:
        sizes = " x ".join(f"mesh.{axis}={n}" for axis, n in zip(AXES, shape, strict=True))
        raise UserError(
            f"{sizes} needs {required} devices, but there are {count} devices; set mesh.data=-1"
        )
    return Mesh(arrange(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arrange(shape, devices, *, process_is_granule=False):
    """Arrange devices in the shape of a mesh.

    Several TPU slices, or GPU hosts without a common NVLink domain, are connected by a slower
    network. The outer part of `data` spans them, so that only gradients are reduced over that
    network, or, if `data` is too small, the outer part of `fsdp`.

    Args:
      shape: sizes of the axes `AXES`, whose product is the number of devices.
      devices: a list of JAX devices.
      process_is_granule: whether to treat each process as a slice.

    Returns:
      An array of devices.

    Raises:
      UserError: if `tensor` would span several slices.
    """
    attribute = "process_index" if process_is_granule else "slice_index"
    slices = len({getattr(device, attribute, 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(shape, AXES, devices=devices).devices
    outer_data = math.gcd(shape[0], slices)
    outer = (outer_data, slices // outer_data, 1)
    if shape[1] % outer[1]:
        raise UserError(
            f"mesh.data={shape[0]} x mesh.fsdp={shape[1]} must be divisible by {slices}, the "
            "number of slices or hosts; reduce mesh.tensor, whose devices must be in one slice"
        )
    inner = [size // count for size, count in zip(shape, outer, strict=True)]
    return create_hybrid_device_mesh(
        inner,
        outer,
        devices,
        process_is_granule=process_is_granule,
        allow_split_physical_axes=True,
    )


def data_parallel_mesh():
    """Create a mesh of all devices with sharded batches and replicated parameters."""
    return make_mesh({"data": -1, "fsdp": 1, "tensor": 1})


def batch_sharding(mesh: Mesh):
    """Return the sharding of a batch: axis 0 over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def constrain_batch(x):
    """Constrain activations to the batch sharding, if a mesh with `data` and `fsdp` is set.

    Without this constraint, XLA may reshard the activations instead of gathering parameters.
    """
    if not {"data", "fsdp"} <= set(mesh_shape()):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(("data", "fsdp")))


def num_batch_shards():
    """Return the number of devices over which the batch is sharded in the current mesh."""
    shape = mesh_shape()
    return shape.get("data", 1) * shape.get("fsdp", 1)


def mesh_shape():
    """Return the axis sizes of the current mesh, {axis: size}; {} inside of `jax.shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    return {} if mesh.manual_axes else dict(mesh.shape)


def replicated(mesh: Mesh):
    """Return the sharding of a replicated array."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(name, size, mesh):
    """Check that a batch can be sharded over the mesh.

    Args:
      name: name of the batch size, for the error message.
      size: number of images in a batch.
      mesh: a mesh of `make_mesh`.

    Raises:
      UserError: if `size` is not divisible by the number of shards.
    """
    num_shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if size % num_shards:
        raise UserError(
            f"{name} {size} must be divisible by mesh.data x mesh.fsdp = {num_shards} devices; "
            f"use a multiple of {num_shards}"
        )


def state_shardings(state, mesh: Mesh):
    """Return the shardings of a training state, a tree of arrays or ShapeDtypeStructs."""

    def leaf_sharding(path, leaf):
        return NamedSharding(mesh, spec(path_name(path), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(leaf_sharding, state)


def spec(path, shape, mesh):
    """Return the PartitionSpec of an array.

    `tensor` shards the axis given by `TENSOR_RULES`, and `fsdp` the longest remaining axis. An axis
    is not sharded if its size is not divisible by that of the mesh axis. The layer axis of blocks
    is never sharded, because a scan reads one layer at a time.

    Args:
      path: path of the array, such as "params/blocks/attn/qkv/kernel".
      shape: shape of the array.
      mesh: a mesh of `make_mesh`.
    """
    axes = [None] * len(shape)
    for pattern, axis in TENSOR_RULES:
        if mesh.shape["tensor"] > 1 and re.search(pattern, path) and len(shape) >= -axis:
            if shape[axis] % mesh.shape["tensor"] == 0:
                axes[axis] = "tensor"
    large = int(np.prod(shape)) >= MIN_FSDP_ELEMENTS and not NOT_FSDP.search(path)
    if mesh.shape["fsdp"] > 1 and large:
        first = 1 if re.search(r"(^|/)blocks/", path) else 0
        free = [i for i in range(first, len(shape)) if axes[i] is None]
        free = [i for i in free if shape[i] % mesh.shape["fsdp"] == 0]
        if free:
            axes[max(free, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*axes)


def is_stacked(path):
    """Return whether axis 0 of a leaf is the layer axis: below `blocks`, unless it is a list."""
    names = path_name(path).split("/")
    return "blocks" in names[:-1] and not names[names.index("blocks") + 1].isdigit()


def path_name(path):
    """Format a tree path as "blocks/attn/qkv/kernel"."""
    return "/".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)


def abstract_state(make_state, mesh, *args):
    """Return the result of make_state(*args) as ShapeDtypeStructs with the shardings of the mesh.

    A `jax.jit` of the same function reuses its trace.
    """
    state = jax.eval_shape(make_state, *args)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        state,
        state_shardings(state, mesh),
    )
