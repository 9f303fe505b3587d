"""A page in the browser: drop or paste a picture, and look inside a model.

python -m vit_jax.tools.demo --workdir=runs/digits
python -m vit_jax.tools.demo --workdir=runs/supervised --against=runs/dino --lang=ko
python -m vit_jax.tools.demo --weights=FILE.safetensors --model=vit_small_patch16_224

Shows the most probable classes and, of every layer and head, where a Vision Transformer looks; of a
ResNet, Grad-CAM. Needs gradio: make install EXTRA=demo. The page asks nothing of other sites. It is
for this machine alone; with another --host, whoever reaches it enters --token first, and as it
speaks plain HTTP, put a proxy with TLS before it.
"""

import importlib.util

from absl import flags

from vit_jax import cli, folders
from vit_jax.cli import UserError
from vit_jax.tools import predict


def define_flags():
    flags.DEFINE_string("workdir", None, "folder of a run")
    flags.DEFINE_string("weights", None, "file.safetensors, instead of --workdir")
    flags.DEFINE_string("model", None, "of --weights: its name, such as vit_small_patch16_224")
    flags.DEFINE_string("class_names", None, "of --weights: a text file with a class a line")
    flags.DEFINE_string("against", None, "folder of another run, beside the first one")
    flags.DEFINE_enum("lang", "en", ["en", "ko"], "language of the page")
    flags.DEFINE_string("host", "127.0.0.1", "address to listen on")
    flags.DEFINE_integer("port", 7860, "0: any that is free", lower_bound=0, upper_bound=65535)
    flags.DEFINE_string("token", None, "what visitors enter first; 16 characters or more")


def main(flags):
    check(flags)

    from vit_jax.demo import seen, serve

    listening = serve.bind(flags.host, flags.port)
    models = [seen.of_run(folder) for folder in (flags.workdir, flags.against) if folder]
    if flags.weights:
        models.insert(0, load_file(flags))
    for model in models:
        seen.warm_up(model)
    serve.serve(models, flags.lang, listening, flags.host, flags.token)


def check(flags):
    """UserError before any work."""
    from vit_jax.demo import guard

    if (flags.workdir is None) == (flags.weights is None):
        raise UserError("say either --workdir=DIR or --weights=FILE; see --help")
    if flags.workdir and (flags.model or flags.class_names):
        raise UserError("--model and --class_names go with --weights; a run knows its own")
    if flags.weights and folders.is_folder(flags.weights):
        raise UserError(f"{flags.weights} is a folder; if it is of a run, say --workdir")
    guard.check_token(flags.host, flags.token)
    for folder in (flags.workdir, flags.against):
        if folder:
            cli.load_config(folder)
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs gradio, which is not installed: make install EXTRA=demo")


def load_file(flags):
    from vit_jax.demo import seen

    return seen.of_file(
        flags.weights, flags.model, lambda count: predict.class_names(flags.class_names, count)
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
