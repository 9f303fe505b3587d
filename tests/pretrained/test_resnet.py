"""Tests of ResNet weights of torchvision and timm: logits, names, preprocessing, and writing."""

import json
import subprocess

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from tests import ROOT
from vit_jax import inference, models, pretrained, variants, vit
from vit_jax.config import defaults
from vit_jax.errors import UserError
from vit_jax.pretrained import resnet, timm_config, writing

PEER = ROOT / ".venv-peer/bin/python"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
VIEW = dict(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop=0.875, class_names=list("abcde"))
VIEW |= dict(interpolation="bilinear", crop_mode="center")
# timm 1.0.31 in float64: ResNet(BasicBlock or Bottleneck, (1, 1, 1, 1), num_classes=5) with the
# weights of `draw`, on its images.
LOGITS = {
    "basic": [
        [-0.4499769, -0.8502584, -0.4930596, -0.265849, -0.9412582],
        [-0.5581844, -0.885389, -0.6742218, -0.4870573, -0.9205532],
    ],
    "bottleneck": [
        [-0.2989193, -0.8093195, 0.4385292, 0.1812689, -0.6115666],
        [-0.5933022, -0.8614485, 0.5952845, 0.2425357, -0.4529787],
    ],
}


def draw(name="resnet18", **options):
    """Return random tensors with torchvision's names, and images [2, 33, 47, 3]."""
    weights = zeros(variants.parse(name, **{"num_classes": 5} | options))
    rng = np.random.default_rng(0)
    tensors = {}
    for key in sorted(weights):
        x = rng.standard_normal(weights[key].shape)
        if key.endswith("running_var"):
            x = 0.5 + x**2
        elif key.endswith("weight"):
            x = x / np.sqrt(x[0].size) if x.ndim > 1 else 1 + 0.3 * x
        else:
            x = 0.3 * x
        tensors[key] = x.astype(np.float32)
    return tensors, rng.standard_normal((2, 33, 47, 3)).astype(np.float32)


def zeros(config):
    """Return tensors of zeros with torchvision's names."""
    flat = traverse_util.flatten_dict(models.split(models.build(config).module)[1])
    zero = np.float32(0)
    return resnet.tensors({path: np.broadcast_to(zero, x.shape) for path, x in flat.items()})


@pytest.fixture
def file(tmp_path):
    """A CIFAR ResNet-8 of width 4."""
    save_file(draw("resnet8", width=4)[0], tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


@pytest.mark.parametrize("block", LOGITS)
def test_logits_match_timm(block, tmp_path):
    """Images of odd sizes, so that the padding of every convolution matters."""
    tensors, images = draw("resnet18", block=block, layers=(1, 1, 1, 1))
    counters = {
        key.replace("running_var", "num_batches_tracked"): np.array(7, np.int64)
        for key in tensors
        if key.endswith("running_var")
    }
    save_file(tensors | counters, tmp_path / "w.safetensors")
    apply, params = vit.functional(pretrained.load(tmp_path / "w.safetensors"))
    logits = jax.jit(apply)(params, images)["logits"]
    np.testing.assert_allclose(logits, LOGITS[block], rtol=1e-5, atol=1e-5)


def test_a_file_determines_the_model_but_not_the_preprocessing(tmp_path):
    tensors = zeros(variants.parse("resnet50"))
    path = tmp_path / "w.safetensors"
    save_file({f"module.{key}": np.zeros(x.shape, np.float16) for key, x in tensors.items()}, path)
    described = pretrained.describe(path)
    assert described.model == {"variant": "resnet50"} and described.num_classes == 1000
    assert described.assumed == ("mean", "std", "crop")
    (note,) = described.notes
    assert note == "loaded as resnet50; a ResNet with anti-aliasing has the same tensors"
    for name, (crop, interpolation, image) in {
        "resnet50.tv_in1k": (0.875, "bilinear", 224),
        "resnet50.a1_in1k": (0.95, "bicubic", 224),
        "resnet50.tv2_in1k": (0.875, "bilinear", 176),
    }.items():
        described = pretrained.describe(path, name)
        assert (described.mean, described.std) == IMAGENET
        assert described.assumed == described.notes == ()
        found = (described.crop, described.interpolation, described.image)
        assert found == (crop, interpolation, image), name
    for name, message in {
        "resnet18": r"holds resnet50 \(block bottleneck, .*did you mean --model=resnet50[?]",
        "S/16": "holds resnet50; --model says S/16; did you mean --model=resnet50[?]",
        "resnet50,num_classes=10": "num_classes = 1000, but num_classes = 10 was passed",
        "resnet50,depth=3": "has no option 'depth'",
        "resnet51": "unknown model 'resnet51'",
    }.items():
        with pytest.raises(UserError, match=message):
            pretrained.describe(path, name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("conv1.weight", "conv1.0.weight", "a stem of several convolutions"),
        ("layer1.0.bn1.running_var", "layer1.0.se.fc.weight", "channel attention"),
        ("layer2.0.downsample.0.weight", "x", "missing tensor 'layer2.0.downsample.0.weight'"),
        (
            "layer3.0.conv2.weight",
            "layer3.1.conv2.weight",
            "10 missing tensors: 'layer3.0.conv2.",
        ),
        ("layer3.0.conv2.weight", "layer3.999999.conv2.weight", "numbered from 0"),
        ("layer3.0.conv2.weight", "layer7.0.conv2.weight", "of 3 or 4 stages"),
        ("layer2.0.conv1.weight", "layer1.0.conv1.weight", "wider or grouped convolutions"),
        ("layer1.0.bn1.bias", "layer1.0.bn1.bias ", "unexpected tensor 'layer1.0.bn1.bias '"),
    ],
)
def test_other_networks_are_refused(old, new, message, file):
    tensors = load_file(file)
    tensors[new] = tensors.pop(old)
    save_file(tensors, file)
    with pytest.raises(UserError, match=message):
        pretrained.describe(file)


def test_grouped_convolutions_are_refused(file):
    tensors = load_file(file)
    tensors["layer1.0.conv2.weight"] = tensors["layer1.0.conv2.weight"][:, :2].copy()
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"has shape \[4, 2, 3, 3\], .* expected \[4, 4, 3, 3\]"):
        pretrained.describe(file)


@pytest.mark.parametrize("layout", ["timm", "vit_jax"])
def test_round_trips_are_exact(layout, tmp_path):
    tensors, _ = draw("resnet18")
    save_file(tensors, tmp_path / "w.safetensors")
    model = pretrained.load(tmp_path / "w.safetensors")
    path = tmp_path / ("timm" if layout == "timm" else "x.safetensors")
    writing.write(layout, path, model.config, vit.functional(model)[1], VIEW)
    described = pretrained.describe(path)
    assert (described.mean, described.crop) == (VIEW["mean"], 0.875) and not described.assumed
    assert described.class_names == VIEW["class_names"] and described.interpolation == "bilinear"
    again = pretrained.load(path)
    assert again.config == model.config
    params = (vit.functional(x)[1] for x in (model, again))
    jax.tree.map(np.testing.assert_array_equal, *params)
    if layout == "timm":
        found = load_file(path / "model.safetensors")
        counters = [key for key in found if key.endswith("num_batches_tracked")]
        assert len(counters) == 20 and all(found.pop(key) == 0 for key in counters)
        assert found.keys() == tensors.keys()
        for key, x in tensors.items():
            np.testing.assert_array_equal(found[key], x)
        card = json.loads((path / "config.json").read_text())
        assert card["architecture"] == "resnet18" and card["num_features"] == 512


def test_what_cannot_be_written_is_refused(file, tmp_path):
    model = pretrained.load(file)
    params = vit.functional(model)[1]
    for layout, message in {
        "timm": "timm has no ResNet of 1-1-1 basic blocks of width 4; pass --to=vit_jax",
        "hf": "cannot express a ResNet; pass --to=timm or --to=vit_jax",
    }.items():
        with pytest.raises(UserError, match=message):
            writing.write(layout, tmp_path / layout, model.config, params, VIEW)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_config_json_of_timm(file):
    """The image size is that of config.json; what changes the outputs is refused."""
    card = {"architecture": "resnet8", "model_args": {"in_chans": 3, "drop_path_rate": 0.1}}
    card["pretrained_cfg"] = {"input_size": [3, 288, 288], "mean": [0.1, 0.2, 0.3]}
    card["pretrained_cfg"] |= {"std": [0.4, 0.5, 0.6], "crop_pct": 1.0}
    path = file.with_name("config.json")
    for change, message in (
        ({"architecture": "resnet14"}, r"layers \(1, 1, 1\), .* has layers \(2, 2, 2\)"),
        ({"architecture": "resnetblur50"}, "architecture 'resnetblur50' is not supported"),
        ({"model_args": {"output_stride": 8}}, "model_args output_stride are not supported"),
        ({"global_pool": "max"}, "global_pool max of a ResNet is not supported"),
    ):
        path.write_text(json.dumps(card | change))
        with pytest.raises(UserError, match=message):
            pretrained.describe(file)
    tensors, _ = draw("resnet8", width=16)
    save_file(tensors, file)
    path.write_text(json.dumps(card))
    described = pretrained.describe(file)
    assert (described.image, described.mean, described.crop) == (288, (0.1, 0.2, 0.3), 1.0)


def test_repositories_of_the_hub_are_known():
    card = timm_config.catalog_card(None, "timm/resnet50.tv2_in1k")
    options = {"block": "bottleneck", "layers": (3, 4, 6, 3), "width": 64, "image": 176}
    assert card.options == options and card.preprocessing.interpolation == "bilinear"


@pytest.mark.parametrize("name", ["conv1.weight", "layer1.0.conv1.weight", "fc.weight"])
@pytest.mark.parametrize("axes", [0, 1, 5])
def test_tensors_with_other_axes_are_refused(name, axes, file):
    tensors = load_file(file)
    tensors[name] = np.ones((4,) * axes, np.float32)
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"shapes do not match a ViT or a ResNet|has shape \["):
        pretrained.describe(file)


def test_fine_tuning_starts_from_the_weights(file):
    """The classifier is new, the stem is summed for gray images, and statistics are kept."""
    c = defaults()
    c.model_init = str(file)
    c.model.update(variant="resnet8", width=4, channels=1)
    (note,) = pretrained.check_init(c, 3)
    assert "does not determine mean and std" in note
    module = models.build(variants.from_config(c.model, 3)).module
    weights, fresh = pretrained.init_params(c.model_init, module, c.model)
    assert fresh == ["head"] and "head" not in weights
    tensors = load_file(file)
    kernel = tensors["conv1.weight"].sum(1, keepdims=True).transpose(2, 3, 1, 0)
    np.testing.assert_allclose(weights["stem"]["kernel"], kernel, rtol=1e-6)
    mean = tensors["layer2.0.downsample.1.running_mean"]
    np.testing.assert_array_equal(weights["layer2"]["block0"]["shortcut"]["mean"], mean)
    for options, message in (
        ({"width": 16}, "has width 4, but config.model has width 16; pass .*width=4"),
        (
            {"variant": "S/16", "width": None},
            "weights of a ResNet, but .* such as --config.model.variant=",
        ),
    ):
        c.model.update({"width": 4} | options)
        with pytest.raises(UserError, match=message):
            pretrained.check_init(c, 3)
    c.model.update(variant="resnet8", width=4)
    save_file(draw("resnet8", width=4, layers=(1, 2, 1))[0], file)
    with pytest.raises(UserError, match="a ResNet of 1-2-1 basic blocks, which no config.model.va"):
        pretrained.check_init(c, 3)


def test_predictions_use_the_names_of_the_file(file):
    model = inference.load(str(file))
    assert model.is_cnn and model.variant == "resnet8" and model.size == (32, 32)
    view = model.view(np.zeros((40, 50, 3), np.uint8))
    assert model.run([view])["logits"].shape == (1, 5)


SCRIPT = """
import json, pathlib, sys
from experiments.catalog.__main__ import import_timm
timm = import_timm()
import numpy as np, torch
folder = pathlib.Path(sys.argv[1])
config = json.loads((folder / "config.json").read_text())
file = str(folder / "model.safetensors")
model = timm.create_model(config["architecture"], checkpoint_path=file, **config["model_args"])
model.load_state_dict(timm.models.load_state_dict(file), strict=True)
assert model.state_dict().keys() == timm.models.load_state_dict(file).keys()
x = torch.from_numpy(np.load(folder / "x.npy")).permute(0, 3, 1, 2).contiguous()
with torch.no_grad():
    np.save(folder / "out.npy", model.eval()(x).numpy())
"""


@pytest.mark.slow
@pytest.mark.skipif(not PEER.exists(), reason="needs make bench-peer")
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_timm_computes_the_same(name, tmp_path):
    tensors, images = draw(name)
    save_file(tensors, tmp_path / "w.safetensors")
    model = pretrained.load(tmp_path / "w.safetensors")
    params = vit.functional(model)[1]
    writing.write("timm", tmp_path / "timm", model.config, params, VIEW)
    np.save(tmp_path / "timm/x.npy", images)
    subprocess.run([PEER, "-c", SCRIPT, tmp_path / "timm"], check=True, cwd=ROOT)
    ours = model(images)["logits"]
    theirs = np.load(tmp_path / "timm/out.npy")
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1, np.abs(theirs).max()))
