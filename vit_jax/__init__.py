"""Vision Transformers in JAX: train, reproduce, look inside.

The root is the path of an image; a folder is a family you can add a member to, or a room with one
purpose. The life of an image, in order:

  cli.py           a command line -> a checked config, an exit code
  config.py        every key of a config: default, unit, choices, range; joint checks; config.json
  schema.py        what a key may hold; how the members of a family are found
  train.py         the loop
  run.py           a config -> data, model, objective, optimizer, mesh
  data/            FAMILY: sources of encoded or plain images and their labels; decode.py
  augment/         host.py: crop, resize, distort, in threads and worker processes
  batch.py         views -> b h w c on the devices, ahead; batch k is a pure function of (seed, k)
  step.py          one optimizer step: everything below, up to optim.py
  objectives/      FAMILY: what is minimized, and what it shows and costs
  augment/         device.py: flip, color, blur, solarize, normalize, erase
  mixing.py        mixup, CutMix
  variants.py      ViTConfig, ResNetConfig; names -> configs
  models.py        a config -> a model as pure functions
  vit.py           the Vision Transformer: b h w c -> named outputs
  layers/          its parts: patches, positions, attention, MLP, norms, pooling, kernels
  resnet.py        the CNN it is compared with
  flops.py         parameters and FLOPs of a config
  optim.py         gradients -> updates: decay masks, layer-wise decay, clipping, freezing
  schedules.py     learning rates
  forward.py       one forward pass over many batches: compiled once, padded, sharded
  evaluators/      FAMILY: parameters -> metrics
  workdir/         what a run leaves behind: checkpoints, metrics, log; on disk or in a bucket
  pretrained/      FAMILY: weight layouts, as tables of names; the weights of runs
  inference.py     LoadedModel: weights of a run or file, preprocessing, class names, run(images)
  errors.py        how a command ends other than well

Beside it: devices/ (mesh, sharding rules, processes), analysis/ (arrays to arrays: attention maps,
receptive fields, Grad-CAM, weight statistics), figures/ (FAMILY: arrays to figures), perf/
(workloads, interleaved timing, compiled programs), report/ and demo/ (an HTML page of a run; a page
to drop a picture on), tools/ (commands). Arrows go down only; `make lint` enforces the chain in
pyproject.toml.

Axes: b batch, v views, h w rows and columns, c channels, n tokens (q queries, m keys),
d width, e one head's share of it, k classes, l layers.
"""
