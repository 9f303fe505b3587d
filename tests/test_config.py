"""The config schema: accepted configs can be built; rejected ones raise a one-line UserError."""

import jax
import numpy as np
import pytest

from tests import ROOT
from vit_jax import cli, habits, variants
from vit_jax import config as configs
from vit_jax.config import check, defaults, flat, objective, schema
from vit_jax.errors import UserError
from vit_jax.run import Run
from vit_jax.schema import members

# Values that `draw` samples from. The first one is the usual value; most draws use it.
VALUES = {
    "model.variant": [
        "mu/4",
        "nano/2",
        "resnet8",
        "mu/5",
        "nano/2,depth=1",
        "vit_tiny_patch16_224",
    ],
    "model.image": [8, 16, 20, 12, 1],
    "model.channels": [3, 1, 2],
    "model.depth": [None, 1, 2, 0],
    "model.width": [None, 48, 6, 50],
    "model.num_heads": [None, 1, 3],
    "model.mlp_dim": [None, 7],
    "model.patch": [None, 4, 3],
    "model.num_classes": [None, 10, 0],
    "model.pool": ["cls", "gap", "map", "cls_gap", "mean"],
    "model.class_token": [None, True, False],
    "model.fc_norm": [None, True, False],
    "model.reg_tokens": [0, 2, -1],
    "model.dist_token": [False, True],
    "model.rep_size": [0, 5],
    "model.pos_embed": ["learned", "sincos2d", "none"],
    "model.embed_reg": [False, True],
    "model.rope": ["none", "axial", "dinov3", "mixed"],
    "model.rope_grid": [None, 4],
    "model.patch_bias": [True, False],
    "model.embed_norm": [False, True],
    "model.norm_eps": [1e-6, 1e-5, 0.0],
    "model.mlp": ["mlp", "swiglu"],
    "model.mlp_norm": [False, True],
    "model.k_bias": [True, False],
    "model.qk_norm": [False, True],
    "model.attn_norm": [False, True],
    "model.no_embed_class": [False, True],
    "model.pos_resize": ["timm", "dino", "deit"],
    "model.patch_embed": ["conv", "linear"],
    "model.norm": ["pre", "post", "res_post"],
    "model.act": ["gelu", "gelu_tanh", "quick_gelu"],
    "model.qkv_bias": [True, False],
    "model.layer_scale_init": [None, 1e-4, -1.0],
    "model.drop_path": [0.0, 0.3, 1.0],
    "model.drop_path_uniform": [False, True],
    "model.dropout": [0.0, 0.2],
    "model.remat": ["none", "dots", "full"],
    "model.scan": ["auto", "on", "off"],
    "model.attn": ["auto", "matmul", "xla", "cudnn", "pallas"],
    "model.init": ["deit", "big_vision", "xavier"],
    "model.dtype": ["float32", "bfloat16", "float64"],
    "objective.name": ["supervised", "dino"],
    "augment.crop": ["none", "resized", "simple", "pad", "multi"],
    "augment.local_views": [2, 0],
    "augment.local_size": [4, 6],
    "augment.randaugment": ["", "rand-m9-mstd0.5-inc1", "rand-m9"],
    "augment.scale": [(0.3, 1.0), (1.0, 0.3)],
    "augment.rotate": [0.0, 10.0],
    "augment.jitter": [(0.4, 0.4, 0.2, 0.1), (0.4, 0.4)],
    "augment.three_augment": [False, True],
    "augment.mixup": [0.0, 0.8],
    "augment.erase": [0.0, 0.25],
    "evaluators": [("accuracy",), ("knn",), ("none_such",)],
    "optim.name": ["adamw", "sgd", "lamb", "lion", "muon"],
    "optim.layer_decay": [1.0, 0.8],
    "optim.decay_by": ["lr", "schedule"],
    "optim.clip": [0.0, 1.0],
    "accum_steps": [1, 2, 3],
}


def draw(rng):
    """Draw a random config on eight synthetic images; most keys have their usual value."""
    c = defaults()
    picks = {
        key: values[rng.integers(len(values)) if rng.random() < 0.12 else 0]
        for key, values in VALUES.items()
    }
    c.objective = objective(picks["objective.name"])
    if picks["objective.name"] == "dino" and rng.random() < 0.8:  # the keys that DINO needs
        picks |= {"augment.crop": "multi", "model.num_classes": 0, "evaluators": ("knn",)}
    for key, value in picks.items():
        *groups, leaf = key.split(".")
        group = c
        for name in groups:
            group = group[name]
        group[leaf] = value
    if "out_dim" in c.objective:
        c.objective.update(out_dim=32, hidden_dim=16, bottleneck_dim=8)
    c.data.name = "synthetic"
    c.data.train = "train"
    c.data.val = "val"
    c.data.test = "test"
    c.data.threads = 1
    c.data.mean = c.data.std = (0.5,) * c.model.channels
    c.data.synthetic.images = 8
    c.batch_size = 4
    c.total_steps = "4"
    c.optim.warmup = "1"
    return c


def test_accepted_configs_can_be_built():
    """If `check` accepts a random config, a batch can be read and the training step traced."""
    rng = np.random.default_rng(0)
    accepted = 0
    rejected = 0
    for _ in range(45):
        config = draw(rng)
        try:
            check(config)
        except UserError as error:
            assert str(error).startswith("config") and "\n" not in str(error), error
            rejected += 1
            continue
        accepted += 1
        try:
            run = Run(config, jax.devices()[:1])
        except UserError as error:  # not supported on this platform
            assert "cudnn" in str(error) and config.model.attn == "cudnn"
            continue
        batches = run.batches(0)
        with jax.set_mesh(run.mesh):
            jax.eval_shape(run._step, run.abstract, next(batches), run.train_rng)
        batches.close()
    assert accepted > 12 and rejected > 12


@pytest.mark.parametrize("name", members("objectives"))
def test_every_key_rejects_wrong_types_and_out_of_range_values(name):
    for key, spec in schema(name).items():
        assert spec.doc and not spec.doc.endswith("."), key
        spec.check(key, spec.default)
        invalid = [b"bytes", {}, None] if spec.default is not None else [b"bytes", {}]
        is_tuple = isinstance(spec.default, tuple)
        count = max(len(spec.default), 1) if is_tuple else 1
        for bound, beyond in ((spec.minimum, -1), (spec.maximum, 1)):
            if np.isfinite(bound):
                invalid.append(bound + beyond)
        invalid += [bound for bound in (spec.greater_than, spec.less_than) if np.isfinite(bound)]
        invalid += ["none_such"] if spec.choices or spec.family else []
        invalid += [(1.0,) * (count + 1)] if spec.length else []
        for value in invalid:
            value = (value,) * count if is_tuple and not isinstance(value, tuple) else value
            if spec.duration and isinstance(value, float):
                value = str(int(value))
            with pytest.raises(UserError, match=f"^{key}\\b"):
                spec.check(key, value)


def test_model_group_has_the_options_of_vit_config():
    group = defaults().model
    assert set(group) == {"variant", *variants.ViTConfig.__dataclass_fields__}
    assert variants.from_config(group) == variants.parse("S/16")
    assert variants.from_config(group, 7).num_classes == 7
    group.num_classes = 5
    assert variants.from_config(group, 7).num_classes == 5


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.depth", 0, "config.model.depth = 0 must be at least 1"),
        ("model.variant", "nano/2,depth=1", "pass --config.model.depth=1"),
        ("model.class_token", False, "pool = 'cls' needs class_token"),
        ("model.channels", 2, "must be 3 .color. or 1 .gray."),
        ("augment.crop", "multi", "needs one view per image"),
        ("knn.k", (0,), "config.knn.k = .0,. must be at least 1"),
        ("best_metric", "eval/val/knn5", "is not evaluated"),
        ("data.mean", (0.5,), "must have 3 numbers"),
        ("model.dtype", "float64", "JAX_ENABLE_X64=1"),
        ("data.class_names", (1,), "must be a tuple"),
        ("objective.name", "dino", "set c.objective = objective.'dino'."),
    ],
)
def test_invalid_configs_are_rejected(key, value, message):
    config = defaults()
    config.evaluators = ("accuracy", "knn")
    *groups, leaf = key.split(".")
    group = config[groups[0]] if groups else config
    group[leaf] = value
    with pytest.raises(UserError, match=message):
        check(config)


def test_load_config_of_an_older_run(tmp_path):
    """Keys added later get their default, and renamed keys keep their value."""
    old = defaults()
    old.augment.gray = 0.2
    values = old.to_dict()
    values["augment"]["grey"] = values["augment"].pop("gray")
    del values["model"]["patch"], values["knn"]
    configs.storage.write_json(tmp_path / "config.json", values)
    loaded = configs.load_config(tmp_path)
    assert flat(loaded) == flat(old)
    check(loaded)
    assert configs.blocking_diff(loaded, old) == []
    old.total_steps = "7"
    old.optim.lr = 0.5
    assert configs.blocking_diff(loaded, old) == ["optim.lr: 0.001 -> 0.5"]


def test_habits_name_existing_flags_and_keys():
    """Every replacement exists, and its key accepts the converted value."""
    values = {"epochs": "3", "dtype": "true", "jitter": "0.3", "last": "3,224,224"}
    values |= {"variant": "vit_small", "distillation": "hard"}
    both = [objective(name) for name in ("supervised", "dino")]
    tools = "".join(path.read_text() for path in ROOT.glob("vit_jax/**/*.py"))
    names = [name for habit in habits.HABITS for name in habit.names.split()]
    assert len(names) == len(set(names)) and all(name == name.lower() for name in names)
    for habit in habits.HABITS:
        parts = habit.instead.replace("|", " ").split()
        assert parts or habit.remark
        for part in parts:
            target, _, conversion = part.partition(":")
            key = target.partition("=")[0]
            if key.startswith("--"):
                assert f'"{key[2:]}"' in tools
                continue
            config = defaults()
            config.objective = next(
                (c for c in both if key.removeprefix("objective.") in c), both[0]
            )
            default = flat(config)[key]
            text = default if isinstance(default, str) else str(1 if default is None else default)
            value = values.get(conversion, text)
            argument = habits._argument(part, value)
            cli.override(config, key, argument.partition("=")[2])
            schema(config.objective.name)[key].check(key, flat(config)[key])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", "10", "--config.total_steps=10ep"),
        ("total_epochs", "90", "--config.total_steps=90ep"),
        ("model.size", "S", "--config.model.variant=S/16"),
        ("arch", "vit_small", "--config.model.variant=S/16"),
        ("model", "deit_base_patch8_224", "--config.model.variant=B/8"),
        ("model", "dino_vits8", "--config.model.variant=S/8"),
        ("model", "resnet50", "--config.model.variant=resnet50"),
        ("model_name", "vit", "--config.model.variant=..."),
        ("warmup-epochs", "5", "--config.optim.warmup=5ep"),
        ("schedule.warmup_steps", "10000", "--config.optim.warmup=10000"),
        ("data-path", "/data/my images", "'--config.data.dir=/data/my images'"),
        ("color-jitter", "0.4", "--config.augment.jitter=0.4,0.4,0.4,0"),
        ("input-size", "3,224,224", "--config.model.image=224"),
        ("precision", "bf16-mixed", "--config.model.dtype=bfloat16"),
        ("use_fp16", "false", "--config.model.dtype=float32"),
        ("blr", "1e-3", "--config.optim.lr=1e-3 --config.optim.lr_batch=256"),
        ("input.batch_size", "512", "--config.batch_size=512; " + habits.TOTAL),
        ("lr", "1e-3", "--config.optim.lr=1e-3"),
        ("drop_path", "0.1", "--config.model.drop_path=0.1"),
        ("workers", "4", "--config.data.workers=4"),
        ("ThreeAugment", "", "--config.augment.three_augment=true"),
        ("src", "", "--config.augment.crop=simple --config.augment.pad=4"),
        ("bce-loss", "", "--config.objective.loss=binary"),
        ("image", "32", "--config.model.image=32"),
        ("freeze_last_layer", "", "--config.optim.freeze_for=...ep"),
        ("distillation-type", "soft", "--config.objective.distill.kind=soft"),
        ("distillation-type", "none", "--config.objective.distill.kind=..."),
    ],
)
def test_suggestion_for_a_flag_or_key_of_another_project(name, value, expected):
    assert habits.hint(name, flat(defaults()), value) == f"pass {expected}"


def test_suggestions_name_only_keys_of_the_objective():
    config = defaults()
    assert habits.hint("out_dim", flat(config), "9") is None
    assert "--config.objective.label_smoothing" in habits.hint("smoothing", flat(config), "0.1")
    config.objective = objective("dino")
    assert habits.hint("out_dim", flat(config), "9") == "pass --config.objective.out_dim=9"
    assert habits.hint("smoothing", flat(config), "0.1") is None
    # A recipe has no command line; a command without --config has no keys.
    assert configs.suggest("epochs", flat(config)) == "did you mean 'total_steps'?"
    assert habits.hint("lr", (), "1") is None and habits.hint("resume", ()) is None
    assert habits.hint("arch", (), "vit_small", ("model",)) == "pass --model=S/16"
    assert habits.hint("output-dir", flat(config), "x", ("workdir",)) == "pass --workdir=x"
