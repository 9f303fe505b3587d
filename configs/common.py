"""Every key of a config, once: its default, its unit, what it does. Recipes override what differs.

A recipe imports this module and nothing else. Durations are strings: "1000" or "10k" or "1e3"
optimizer steps, "3ep" passes over the training split. `None` in `model`: as the variant says.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The values a key may take, where it is one of a few. Families (data.name, objective.name,
# evaluators) are checked against the modules that are there.
CHOICES = {
    "augment.crop": ("resized", "pad", "none", "multi"),
    "model.pool": ("cls", "gap", "map"),
    "model.pos_embed": ("learned", "sincos2d"),
    "model.pos_resize": ("timm", "dino"),
    "model.patch_embed": ("conv", "linear"),
    "model.norm": ("pre", "post"),
    "model.act": ("gelu", "gelu_tanh"),
    "model.remat": ("none", "dots", "full"),
    "model.scan": ("auto", "on", "off"),
    "model.attn": ("auto", "matmul", "xla", "cudnn"),
    "model.init": ("deit", "big_vision"),
    "model.dtype": ("float32", "bfloat16"),
    "optim.name": ("adamw", "sgd"),
    "optim.decay_rule": ("timm", "deit", "dino", "kernel", "all"),
    "optim.decay_by": ("lr", "schedule"),
    "optim.clip_by": ("global", "tensor"),
    "optim.schedule_by": ("step", "epoch"),
}


def defaults():
    c = ConfigDict()
    c.seed = 0  # of initialisation, data order and augmentation
    c.batch_size = 1024  # images an optimizer step, over all devices
    c.accum_steps = 1  # micro-batches an optimizer step is split into, to save memory
    c.total_steps = "300ep"  # duration of the whole training
    c.log_every = "50"  # duration between rows of metrics.jsonl
    c.eval_every = "1ep"  # duration between evaluations on the val split; "0": only at the end
    c.checkpoint_every = "1ep"  # duration between checkpoints; one is always saved at the end
    c.keep_checkpoints = 2  # how many of the newest stay, beside the best
    c.best_metric = "eval/val/acc1"  # what "best" is measured by; larger is better
    c.evaluators = ("accuracy",)  # modules of vit_jax/evaluators
    c.eval_batch_size = 0  # images a batch of evaluation, over all devices; 0: batch_size
    c.model_init = ""  # weights to begin with: a run's workdir or a file; "": random ones
    c.compilation_cache = "~/.cache/vit_jax/xla"  # of programs, unless the environment says

    c.data = ConfigDict()
    c.data.name = "tfds"  # module of vit_jax/data: tfds, folder, digits, synthetic
    c.data.dataset = ""  # tfds: the data set's name there, such as imagenet2012
    c.data.dir = ""  # tfds: data_dir ("": ~/tensorflow_datasets); folder: the root folder
    c.data.train = "train[:99%]"  # split to train on: NAME, NAME[10:], NAME[:99%]
    c.data.val = "train[99%:]"  # split that choices are made on
    c.data.test = "validation"  # split that is looked at once, at the end
    c.data.cache = False  # keep decoded images in memory, for sets that fit
    c.data.workers = 0  # processes that read and augment; 0: threads of this process
    c.data.threads = 4  # threads that read ahead where workers is 0
    c.data.mean = IMAGENET_MEAN  # subtracted from images in [0, 1], one a channel
    c.data.std = IMAGENET_STD  # then divided by, one a channel
    c.data.synthetic = ConfigDict()
    c.data.synthetic.images = 512  # synthetic: images in a split
    c.data.synthetic.classes = 10  # synthetic: classes

    c.augment = ConfigDict()
    c.augment.crop = "resized"  # random resized crop, from a padded image, the eval crop, or many
    c.augment.scale = (0.08, 1.0)  # resized, multi (the global crops): least and most of the area
    c.augment.ratio = (3 / 4, 4 / 3)  # resized: least and most width / height
    c.augment.pad = 0  # pad: pixels on every side
    c.augment.rotate = 0.0  # random affine: at most so many degrees either way
    c.augment.shift = 0.0  # random affine: at most this share of the side, either way
    c.augment.zoom = 0.0  # random affine: scale within 1 - zoom .. 1 + zoom
    c.augment.shear = 0.0  # random affine: at most so many degrees, either way
    c.augment.repeats = 1  # views of an image in a batch; an epoch has as many fewer images
    c.augment.randaugment = ""  # after crop and affine map, such as rand-m9-mstd0.5-inc1; "": none
    c.augment.local_views = 8  # multi: small crops beside the two global ones; 0: none
    c.augment.local_size = 96  # multi: side of the small crops, pixels
    c.augment.local_scale = (0.05, 0.4)  # multi: least and most share of the area of the small ones
    c.augment.flip = 0.5  # probability of a left-right flip
    c.augment.jitter = (0.0, 0.0, 0.0, 0.0)  # most change of brightness, contrast, saturation, hue
    c.augment.jitter_prob = 1.0  # probability of that
    c.augment.grey = 0.0  # probability of taking the colour away
    c.augment.blur = (0.0, 0.0, 0.0)  # probability in a view; DINO's second one; its small ones
    c.augment.solarize = (0.0, 0.0, 0.0)  # likewise
    c.augment.erase = 0.0  # random erasing: probability an image
    c.augment.mixup = 0.0  # mixup: alpha of Beta(alpha, alpha); 0: off
    c.augment.cutmix = 0.0  # CutMix: likewise
    c.augment.mix_prob = 1.0  # probability that a batch is mixed at all
    c.augment.mix_switch = 0.5  # probability of CutMix where both are on
    c.augment.eval_crop = 0.875  # evaluation: side of the centre crop / short side of the image

    c.model = ConfigDict()
    c.model.variant = "S/16"  # size/patch; the sizes are in vit_jax/variants.py
    c.model.image = 224  # side of the square image the model sees, pixels
    c.model.channels = 3  # 3 colour, 1 grey
    c.model.depth = placeholder(int)  # blocks
    c.model.width = placeholder(int)  # of a token
    c.model.num_heads = placeholder(int)
    c.model.mlp_dim = placeholder(int)  # hidden units of the MLP
    c.model.num_classes = placeholder(int)  # None: as many as the data have; 0: no classifier
    c.model.pool = "cls"  # the [CLS] token, the mean of the patches, or attention pooling
    c.model.class_token = placeholder(bool)  # None: only where pool is cls
    c.model.fc_norm = placeholder(
        bool
    )  # last norm after pooling; None: where it is gap, as in timm
    c.model.pos_embed = "learned"  # or fixed 2-D sin-cos
    c.model.pos_resize = "timm"  # how learned positions become those of another image size
    c.model.patch_embed = "conv"  # strided convolution, or unfold + linear: the same function
    c.model.norm = "pre"  # LayerNorm before attention and MLP, or after them
    c.model.act = "gelu"  # exact (erf); gelu_tanh is big_vision's approximation
    c.model.qkv_bias = True
    c.model.drop_path = 0.0  # stochastic depth: rate of the last block, rising linearly from 0
    c.model.dropout = 0.0  # after attention's projection and in the MLP
    c.model.remat = "none"  # recompute in the backward pass: nothing, all but matmuls, whole blocks
    c.model.scan = "auto"  # one compiled block for all; auto: off up to 12 blocks on CPU
    c.model.attn = "auto"  # kernel of attention; auto: matmul on CPU, xla elsewhere
    c.model.init = "deit"  # normal(0.02), or xavier and a zero classifier as big_vision has it
    c.model.dtype = "float32"  # of activations; parameters are float32

    c.objective = supervised()

    c.optim = ConfigDict()
    c.optim.name = "adamw"
    c.optim.lr = 1e-3  # peak learning rate for lr_batch images a step
    c.optim.lr_batch = 0  # linear-scaling rule: peak = lr * batch_size / lr_batch; 0: peak = lr
    c.optim.b1 = 0.9  # adamw
    c.optim.b2 = 0.999  # adamw
    c.optim.eps = 1e-8  # adamw
    c.optim.momentum = 0.9  # sgd
    c.optim.weight_decay = 0.05
    c.optim.weight_decay_end = placeholder(float)  # it goes there by half a cosine; None: it stays
    c.optim.decay_rule = "timm"  # which parameters decay: see vit_jax.optim.decay_mask
    c.optim.decay_by = "lr"  # decay times the learning rate, or (big_vision) the schedule alone
    c.optim.warmup = "5ep"  # duration of the linear rise
    c.optim.warmup_start = 0.0  # learning rate at step 0
    c.optim.warmup_prefix = False  # True: the cosine starts after the warm-up, not beside it
    c.optim.warmup_reaches = False  # True: the last step of the warm-up has the peak already (DINO)
    c.optim.end = 0.0  # learning rate at the end
    c.optim.schedule_by = "step"  # when it moves; epoch: once in each, one late (DeiT)
    c.optim.clip = 0.0  # largest norm of the gradient; 0: no clipping
    c.optim.clip_by = "global"  # the norm of everything, or (DINO) of each tensor by itself
    c.optim.freeze = "head/last_layer"  # path of parameters that start to learn later
    c.optim.freeze_for = "0"  # duration until then; "0": nothing waits
    c.optim.only = ""  # path of the only parameters that learn, such as head; "": all do
    c.optim.layer_decay = 1.0  # learning rate of each layer / that of the next one

    c.mesh = ConfigDict()  # devices along each axis; -1: what is left
    c.mesh.data = -1  # copies of the model
    c.mesh.fsdp = 1  # parameters and batch both split
    c.mesh.tensor = 1  # heads and hidden units split
    return c


def supervised():
    """Keys of vit_jax/objectives/supervised.py."""
    c = ConfigDict()
    c.name = "supervised"
    c.label_smoothing = 0.0  # share of the target spread over all classes
    c.ema = 0.0  # decay of the weights' moving average; 0: none, evaluate the weights themselves
    return c


def dino():
    """Keys of vit_jax/objectives/dino.py; the values are the reference's (arXiv:2104.14294)."""
    c = ConfigDict()
    c.name = "dino"
    c.out_dim = 65536  # prototypes, outputs of the projection head
    c.hidden_dim = 2048  # of the head's MLP
    c.bottleneck_dim = 256  # of the head's MLP's output
    c.norm_last_layer = True  # the prototypes' norms stay 1; False: they are learned
    c.student_temp = 0.1
    c.teacher_temp = 0.04  # after the warm-up
    c.warmup_teacher_temp = 0.04  # at its beginning
    c.teacher_temp_warmup = "0"  # duration of the linear rise, in whole epochs
    c.momentum = 0.996  # of the teacher; rises to 1 by half a cosine
    c.center_momentum = 0.9
    return c


def for_fashion_mnist(c):
    """What the recipes on Fashion-MNIST share; changes c."""
    c.data.name, c.data.dataset = "tfds", "fashion_mnist"
    c.data.train, c.data.val, c.data.test = "train[:55000]", "train[55000:]", "test"
    c.data.mean, c.data.std = (0.286,), (0.353,)
    c.data.cache, c.data.threads = True, 1  # 43 MB; one thread keeps up
    c.model.image, c.model.channels = 28, 1
    c.augment.flip, c.augment.eval_crop = 0.5, 1.0
    c.batch_size, c.eval_batch_size, c.log_every = 64, 500, "100"


def for_imagenet(c):
    """What the supervised recipes on ImageNet-1k share; changes c."""
    c.data.name, c.data.dataset, c.data.workers = "tfds", "imagenet2012", 8
    c.model.image, c.model.dtype = 224, "bfloat16"
    a = c.augment
    a.crop, a.scale, a.flip, a.eval_crop = "resized", (0.08, 1.0), 0.5, 0.875


def for_mixing(c):
    """DeiT's strong augmentation, which MAE's recipes took over; changes c."""
    a = c.augment
    a.randaugment = "rand-m9-mstd0.5-inc1"
    a.mixup, a.cutmix, a.mix_prob, a.mix_switch = 0.8, 1.0, 1.0, 0.5
    c.objective.label_smoothing = 0.1


def for_dino(c):
    """What every recipe of DINO shares, whatever its model, data and length; changes c."""
    c.objective = dino()
    c.model.num_classes, c.model.pos_resize, c.augment.crop = 0, "dino", "multi"
    p = c.optim
    p.warmup_prefix, p.warmup_reaches = True, True
    p.weight_decay, p.weight_decay_end, p.decay_rule = 0.04, 0.4, "dino"
    p.clip, p.clip_by, p.freeze_for = 3.0, "tensor", "1ep"
    c.evaluators, c.best_metric = ("knn",), "eval/val/knn20"


def tiny(c):
    """The same recipe in seconds: 2 steps on synthetic images with the smallest model."""
    c = c.copy_and_resolve_references()
    size, _, patch = c.model.variant.partition("/")
    c.model.width = None
    if patch:
        c.model.variant, c.model.depth = f"mu/{patch}", 2
        c.model.num_heads, c.model.mlp_dim = None, None
        c.model.image = 2 * int(patch)
        c.augment.local_views, c.augment.local_size = 2, int(patch)
    else:  # a ResNet
        c.model.variant, c.model.image = "resnet8", 8
    c.data.name, c.data.train, c.data.val, c.data.test = "synthetic", "train", "val", "test"
    c.data.workers = 0
    c.data.synthetic.images = 16
    c.batch_size, c.eval_batch_size = 8 * c.accum_steps, 8
    c.total_steps = c.log_every = c.eval_every = c.checkpoint_every = "2"
    c.optim.warmup = "1"
    if c.objective.name == "dino":
        c.objective.out_dim, c.objective.hidden_dim, c.objective.bottleneck_dim = 64, 32, 16
    return c
