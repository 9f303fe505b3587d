"""Vision Transformers in JAX: training, evaluation and analysis.

The modules at the top level implement training and inference. A folder is either a family of
interchangeable modules (FAMILY), to which a new module can be added, or a package with a single
purpose. In the order in which a run uses them:

  cli.py           command line -> checked config; exit codes
  config.py        every config key with default, unit, choices and range; joint checks; config.json
  schema.py        types and checks of config keys; lookup of the members of a family
  habits.py        equivalents of the flags and keys of other projects, for error messages
  plan.py          what config and data determine, checked before JAX is imported
  train.py         the training loop
  guard.py         saves what is unsaved when training is interrupted; skipped steps
  run.py           config -> data, model, objective, optimizer, mesh
  data/            FAMILY: sources of encoded or decoded images with labels; decode.py
  augment/         host.py: crop, resize, affine, RandAugment, in threads or worker processes
  batch.py         views -> prefetched batches b h w c; batch k is a pure function of (seed, k)
  step.py          the training step, which uses the modules below up to optim.py
  objectives/      FAMILY: the loss, the metrics it logs and its FLOPs
  augment/         device.py: flip, color, blur, solarize, normalize, erase
  mixing.py        mixup, CutMix
  variants.py      ViTConfig, ResNetConfig; model names -> configs
  catalog.py       timm's published models: architectures, and weights with their preprocessing
  models.py        config -> model as pure functions
  vit.py           the Vision Transformer: b h w c -> named outputs
  layers/          patch and position embedding, attention, MLP, norms, pooling, kernels
  resnet.py        the CNN baseline
  flops.py         parameters and FLOPs of a config
  optim.py         gradients -> updates: decay masks, layer-wise decay, clipping, freezing
  schedules.py     learning rate schedules
  scoring.py       top-k accuracy with ties, calibration, mCE
  forward.py       a forward pass over many batches: compiled once, padded, sharded
  evaluators/      FAMILY: parameters -> metrics; suites.toml: the test sets of ImageNet
  workdir/         the files of a run: checkpoints, owner, metrics, log; on disk or in a bucket
  loggers/         FAMILY: TensorBoard, Weights & Biases
  snapshots.py     images for the loggers: augmented training images, attention maps
  pretrained/      FAMILY: weight layouts as tables of names; weights of runs
  inference.py     LoadedModel: weights of a run or file, preprocessing, class names, run(images)
  progress.py      progress of long operations on a terminal, or as lines
  errors.py        exceptions and exit codes

Other packages: devices/ (mesh, sharding rules, processes), analysis/ (arrays to arrays: attention
maps, receptive fields, Grad-CAM, weight statistics), figures/ (FAMILY: arrays to figures), perf/
(workloads, interleaved timing, compiled programs), report/ (an HTML report of a run), demo/ (a web
demo), tools/ (commands). A module imports only from lower layers; `make lint` checks the layers
that pyproject.toml lists.

Axes: b batch, v views, h w rows and columns (in attention maps, h is heads), c channels, n tokens
(q queries, m keys), d width, e head dim, k classes, l layers.
"""
