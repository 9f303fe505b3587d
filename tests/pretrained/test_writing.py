"""Tests of writing weights for other codebases; the peers' environment loads what is written."""

import subprocess

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from tests import GOLDEN, ROOT
from vit_jax import pretrained, vit
from vit_jax.errors import UserError
from vit_jax.pretrained import writing

PEER = ROOT / ".venv-peer/bin/python"
SIZE = "mu/8,depth=2,image=32"
VIEW = dict(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop=0.875, class_names=list("abcde"))
VIEW |= dict(interpolation="bilinear", crop_mode="center")
# Options: the layouts that can express them besides vit_jax.
CASES = {
    "": "timm hf",
    "act=gelu_tanh,rep_size=16": "augreg",
    "act=gelu_tanh,pool=map": "augreg timm",
    "act=gelu_tanh,pool=gap,fc_norm=False,no_embed_class=True,class_token=False": "augreg timm",
    "act=gelu_tanh,pos_embed=sincos2d": "augreg",
    "dist_token=True": "timm hf",
    "layer_scale_init=0.1,no_embed_class=True": "timm",
    "reg_tokens=4,no_embed_class=True,pool=gap": "timm",
    "patch_bias=False,embed_norm=True,act=quick_gelu,norm_eps=1e-5": "timm",
    "norm=res_post,pool=gap": "timm",
    "qk_norm=True,mlp_dim=100": "timm",
    "layer_scale_init=0.1,mlp=swiglu,mlp_dim=72": "timm",
    "layer_scale_init=0.1,pool=cls_gap,mlp=swiglu,mlp_dim=88": "hf",
    "layer_scale_init=0.1,reg_tokens=4,pool=cls_gap": "hf",
    "layer_scale_init=0.1,reg_tokens=4,num_classes=0": "hf",
    "rope=mixed,rope_order=xy,pos_embed=none,layer_scale_init=0.1": "timm",
    "layer_scale_init=0.1,rope=dinov3,pos_embed=none,reg_tokens=4,k_bias=False,norm_eps=1e-5,"
    "num_classes=0,mlp=swiglu": "timm hf",
    "rope=axial,rope_temperature=10000.0,rope_grid=16,mlp=swiglu,mlp_norm=True,k_bias=False,"
    "attn_norm=True,mlp_dim=100,pool=gap,class_token=True": "timm",
}


def random_vit(options):
    """Return the config and random weights of a ViT; scales vary about 1, other values about 0."""
    name = f"{SIZE},{options}" if options else SIZE
    classes = {} if "num_classes" in options else {"num_classes": 5}
    # eval_shape: compiling a random initialization would take longer than the test.
    model = nnx.eval_shape(lambda: vit.ViT(vit.variants.parse(name, **classes), rngs=nnx.Rngs(0)))
    template = nnx.to_pure_dict(nnx.state(model))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        x = rng.normal(0, 0.2, leaf.shape).astype(np.float32)
        return x + 1 if path[-1].key == "scale" else x

    return model.config, jax.tree_util.tree_map_with_path(draw, template)


def write(layout, directory, config, params):
    """Write to a path in a directory and return it."""
    ending = "" if layout in writing.DIRECTORIES else writing.ENDINGS[layout]
    path = writing.check_output(layout, directory / f"{layout}{ending}")
    view = VIEW | ({} if config.num_classes else {"class_names": None})
    writing.write(layout, path, config, params, view)
    return path


@pytest.mark.parametrize("options", CASES)
def test_round_trips_are_exact(options, tmp_path):
    config, params = random_vit(options)
    for layout in (*CASES[options].split(), "vit_jax"):
        path = write(layout, tmp_path, config, params)
        weights = pretrained.describe(path)
        model = pretrained.load(path)
        found = vit.functional(model)[1]
        jax.tree.map(np.testing.assert_array_equal, found, params)
        assert model.config.num_classes == config.num_classes
        if layout != "augreg":
            assert (weights.mean, weights.std, weights.crop) == tuple(
                VIEW[key] for key in ("mean", "std", "crop")
            )
            assert weights.class_names == (VIEW["class_names"] if config.num_classes else None)
            assert not weights.assumed


def test_fixed_positions_are_written_as_a_table(tmp_path):
    config, params = random_vit("pos_embed=sincos2d,pool=gap")
    model = pretrained.load(write("timm", tmp_path, config, params))
    expected = vit.sincos2d((4, 4), config.width)
    np.testing.assert_array_equal(vit.functional(model)[1]["pos_embed"], expected)


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ("augreg", "", "--to=augreg cannot express act = 'gelu'; pass --to=vit_jax"),
        ("augreg", "act=gelu_tanh,reg_tokens=4", "--to=augreg has no place for .* 'reg_token'"),
        ("augreg", "act=gelu_tanh,class_token=True,pool=gap,fc_norm=False", "express pool = 'gap'"),
        ("augreg", "act=gelu_tanh,norm_eps=1e-5", "cannot express norm_eps = 1e-05"),
        ("timm", "rep_size=16", "timm has no model with rep_size = 16; pass --to=vit_jax"),
        ("timm", "reg_tokens=4", "positions of \\[CLS\\] but not of the registers"),
        ("timm", "norm_eps=1e-12", "timm has no model with norm = 'pre', norm_eps = 1e-12"),
        ("hf", "qk_norm=True", "ViTModel of transformers has no qk_norm = True"),
        ("hf", "layer_scale_init=0.1", "Dinov2Model of transformers has no pool = 'cls'"),
    ],
)
def test_what_a_layout_cannot_express_is_refused(layout, options, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        write(layout, tmp_path, *random_vit(options))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_existing_files_are_kept(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for layout, name in (("timm", "x.safetensors"), ("vit_jax", "config.json"), ("hf", "a/b")):
        with pytest.raises(UserError, match="already exists|writes a file|existing directory"):
            writing.check_output(layout, tmp_path / name)
    assert (tmp_path / "config.json").read_text() == "{}"


def test_names_are_those_of_published_files(tmp_path):
    """The AugReg file in tests/golden is read and written again."""
    source = GOLDEN / "vit/augreg_token_rep"
    weights = next(source.glob("*.npz"))
    model = pretrained.load(weights)
    params = vit.functional(model)[1]
    path = write("augreg", tmp_path, model.config, params)
    with np.load(weights) as expected, np.load(path) as found:
        assert found.files and set(found.files) == set(expected.files)
        for name in found.files:
            np.testing.assert_array_equal(found[name], expected[name])
    timm = GOLDEN / "vit/vit_cls/state_dict.safetensors"
    model = pretrained.load(timm, "num_heads=3")
    path = write("timm", tmp_path, model.config, vit.functional(model)[1])
    expected = load_file(timm)
    found = load_file(path / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x)


SCRIPT = """
import json, pathlib, sys
sys.path.insert(0, "experiments/benchmarks")
import numpy as np, torch
kind, folder = sys.argv[1], pathlib.Path(sys.argv[2])
x = torch.from_numpy(np.load(folder / "x.npy")).permute(0, 3, 1, 2).contiguous()
if kind == "timm":
    import peer_timm
    timm = peer_timm.import_timm()
else:
    sys.modules["torchvision"] = None
    import transformers
for path in sorted(folder.glob(f"*/{kind}")):
    config = json.loads((path / "config.json").read_text())
    if kind == "timm":
        file = str(path / "model.safetensors")
        args = config["model_args"]
        model = timm.create_model(config["architecture"], checkpoint_path=file, **args)
        state = timm.models.load_state_dict(file)
        model.load_state_dict(state, strict=True)
    else:
        cls = getattr(transformers, config["architectures"][0])
        model, info = cls.from_pretrained(path, output_loading_info=True)
        # ViTModel adds a pooling layer; nothing else may be missing.
        assert not {k for k in info["missing_keys"] if "pooler" not in k}, info
        assert not info["unexpected_keys"], info
    with torch.no_grad():
        out = model.eval()(x)
    if kind == "hf":
        out = out.logits if "logits" in out else out.last_hidden_state
    np.save(path / "out.npy", out.numpy())
    print(path.parent.name, config.get("architecture") or config["architectures"])
"""


@pytest.mark.slow
@pytest.mark.skipif(not PEER.exists(), reason="needs make bench-peer")
@pytest.mark.parametrize("kind", ["timm", "hf"])
def test_peers_compute_the_same(kind, tmp_path):
    x = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    cases = [options for options, layouts in CASES.items() if kind in layouts.split()]
    expected = []
    for i, options in enumerate(cases):
        config, params = random_vit(options)
        directory = tmp_path / f"{i:02}"
        directory.mkdir()
        path = write(kind, directory, config, params)
        model = pretrained.load(path)
        out = model(x)
        key = "logits" if config.num_classes else "tokens" if kind == "hf" else "pooled"
        expected.append(out[key])
    done = subprocess.run(
        [PEER, "-c", SCRIPT, kind, tmp_path], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    for i, (options, ours) in enumerate(zip(cases, expected, strict=True)):
        theirs = np.load(tmp_path / f"{i:02}" / kind / "out.npy")
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=options)
