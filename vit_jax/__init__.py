"""Vision Transformers in JAX: train, reproduce, look inside.

Files are stages every image passes through; folders hold families you can add a member to.
The life of an image:

  data/*           one encoded or plain image and its label, by index
  decode.py        any file or bytes -> uint8 h w c, safely
  augment.py       a view of it: crop, resize, shift (host); erase, normalise (device);
                   resize.py resizes, compiled where Numba is there; randaugment.py changes its
                   colours and shape, by shear.py (host)
  batch.py         views -> b h w c on the devices; batch k is a pure function of (seed, k)
  mixing.py        mixup and CutMix: two images and their targets -> one
  photometry.py    flip, colours, blur, solarisation of one or many views (device)
  patch_embed.py   b h w c -> b n d, plus position
  encoder.py       b n d, depth times attention and MLP; noise.py drops, kernels.py computes
  heads.py         b n d -> b d (pooling) -> b k (logits)
  vit.py           all of that as one model with named outputs; variants.py has the sizes
  resnet.py        the CNN that it is compared with; models.py: the model that a config asks for
  objectives/*     a scalar loss, and what else moves with training
  step.py          its gradient, and the optimizer's move (optim.py, by schedules.py), on the mesh
                   (sharding.py)
  checkpoint.py    the state, on disk and back
  evaluators/*     parameters -> numbers; extract.py makes features of a whole split
  run.py           a config made real: all of the above, built and placed
  train.py         the loop; distributed.py finds the other processes; cli.py, recipe.py and
                   check.py read the command line and config, log.py and metrics.py write the
                   curves, folders.py knows disks and buckets, memory.py keeps the memory of a CPU
  pretrained/*     weights from other projects, as tables of names
  figures/*        arrays to figures
  names.py         names of ImageNet's classes, in English and Korean
  trained.py       a run or a weight file as a model with its weights; pictures.py: what it is given
  attention.py     maps, masks and principal components, from a model's named outputs
  receptive_field.py  how far a CNN and a ViT see; gradcam.py: where a CNN looks; look.py: a model's
                   maps and features of single images
  sight.py         how far a run's model sees and how fast it is, for the report and experiments
  anatomy.py       filters, positions, similarities and sizes of a model
  report/*         a run as one HTML page; words.toml has its phrases in both languages
  demo/*           a page to drop a picture on
  tools/*          what a person runs besides train; workloads.py and turns.py time them

Axes: b batch, v views, h w rows and columns, c channels, n tokens (q queries, m keys),
d width, e one head's share of it, k classes, l layers.
"""
