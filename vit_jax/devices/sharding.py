"""The mesh of devices, and which array lies where on it.

Axes of the mesh: `data` holds copies of the model, `fsdp` splits parameters and batch, `tensor`
splits heads and hidden units. Parameters find their place by path; optimizer state and moving
averages have the paths of their parameters at the end of their own, and follow them.
"""

import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
# Path -> the axis (from the end) that the tensor axis of the mesh splits: heads, hidden units and
# classes (Megatron-LM, arXiv:1909.08053, section 3).
TENSOR_RULES = (
    (r"attn/qkv/(kernel|bias)$", -1),
    (r"attn/proj/kernel$", -2),
    (r"mlp/fc1/(kernel|bias)$", -1),
    (r"mlp/fc2/kernel$", -2),
    (r"(^|/)head/(kernel|bias)$", -1),
    (r"(^|/)head/fc[12]/(kernel|bias)$", -1),
    (r"(^|/)last_layer/(kernel|scale)$", -1),
    (r"(^|/)center$", -1),
)
SMALLEST = 4096  # elements; splitting smaller arrays costs more in messages than it saves


def make_mesh(config, devices=None):
    """config.mesh -> a mesh of these devices (None: all). An axis of -1 takes what is left."""
    devices = jax.devices() if devices is None else devices
    shape, count = [config[axis] for axis in AXES], len(devices)
    if -1 in shape:
        rest = int(np.prod([n for n in shape if n != -1]))
        shape[shape.index(-1)] = max(count // rest, 1)
    if int(np.prod(shape)) != count:
        sizes = " x ".join(f"{axis} {n}" for axis, n in zip(AXES, shape, strict=True))
        raise UserError(f"the mesh is {sizes}, but there are {count} devices; set mesh.data=-1")
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def local_mesh():
    """A mesh of all devices, over which a batch is split and parameters are replicated."""
    return make_mesh({"data": -1, "fsdp": 1, "tensor": 1})


def batch_sharding(mesh: Mesh):
    """Axis 0 of every array of a batch is split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def constrain_batch(x):
    """x with its first axis split as the batch is, and whole otherwise; as it is where no mesh of
    ours is set. Without it XLA may move activations where parameters are split, not parameters."""
    if not {"data", "fsdp"} <= set(jax.sharding.get_abstract_mesh().axis_names):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh):
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(name, size, mesh):
    """UserError unless `size` images divide over the devices."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if size % ways:
        raise UserError(
            f"{name} {size} does not divide over {ways} devices (mesh.data x mesh.fsdp); "
            f"take a multiple of {ways}"
        )


def state_shardings(state, mesh: Mesh):
    """A tree of shapes -> the same tree of shardings."""

    def place(path, leaf):
        return NamedSharding(mesh, spec(path_name(path), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, state)


def spec(path, shape, mesh):
    """The PartitionSpec of one array: `tensor` by the rules, `fsdp` on the longest axis left.

    An axis that a mesh axis does not divide stays whole. The layer axis of blocks is never split:
    a scan reads one layer at a time.
    """
    axes = [None] * len(shape)
    for pattern, axis in TENSOR_RULES:
        if mesh.shape["tensor"] > 1 and re.search(pattern, path) and len(shape) >= -axis:
            if shape[axis] % mesh.shape["tensor"] == 0:
                axes[axis] = "tensor"
    if mesh.shape["fsdp"] > 1 and int(np.prod(shape)) >= SMALLEST:
        first = 1 if re.search(r"(^|/)blocks/", path) else 0
        free = [i for i in range(first, len(shape)) if axes[i] is None]
        free = [i for i in free if shape[i] % mesh.shape["fsdp"] == 0]
        if free:
            axes[max(free, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*axes)


def path_name(path):
    """A tree path as "blocks/attn/qkv/kernel"."""
    return "/".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)


def abstract_state(make_state, mesh):
    """make_state() -> TrainState, as ShapeDtypeStructs with the shardings of the mesh."""
    state = jax.eval_shape(make_state)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        state,
        state_shardings(state, mesh),
    )
