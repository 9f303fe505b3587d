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

from vit_jax import cli
from vit_jax.errors import UserError
from vit_jax.tools import model_flags


def define_flags():
    model_flags.define_flags()
    flags.DEFINE_enum("lang", "en", ["en", "ko"], "language of the page")
    flags.DEFINE_string("host", "127.0.0.1", "address to listen on")
    flags.DEFINE_integer("port", 7860, "0: any that is free", lower_bound=0, upper_bound=65535)
    flags.DEFINE_string("token", None, "what visitors enter first; 16 characters or more")


def main(flags):
    check(flags)

    from vit_jax.demo import seen, serve

    listening = serve.bind(flags.host, flags.port)
    models = [seen.complete(model, flags.lang) for model in model_flags.of_flags(flags)]
    for model in models:
        seen.warm_up(model)
    serve.serve(models, flags.lang, listening, flags.host, flags.token)


def check(flags):
    """UserError before any work."""
    from vit_jax.demo import guard

    guard.check_token(flags.host, flags.token)
    model_flags.check_flags(flags)
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs gradio, which is not installed: make install EXTRA=demo")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
