"""Serve a web page that shows a model's predictions and attention maps for any image.

python -m vit_jax.tools.demo --workdir=runs/digits
python -m vit_jax.tools.demo --workdir=runs/supervised --against=runs/dino --lang=ko
python -m vit_jax.tools.demo --weights=FILE.safetensors --model=vit_small_patch16_224

Drop or paste an image to see the most probable classes and the attention maps of any layer and head
of a Vision Transformer, or Grad-CAM for a ResNet. Requires gradio: make install EXTRA=demo. The
page loads nothing from other sites.

By default the page is only accessible from this machine. Any other --host requires passwords in
--auth_file or in the environment variable VIT_JAX_DEMO_AUTH. The server uses plain HTTP; put it
behind a TLS proxy before exposing it to a network.
"""

import importlib.util

from absl import flags

from vit_jax import cli
from vit_jax.demo import access
from vit_jax.errors import UserError
from vit_jax.tools import model_flags


def define_flags():
    model_flags.define_flags()
    flags.DEFINE_enum("lang", "en", ["en", "ko"], "language of the page")
    flags.DEFINE_string("host", "127.0.0.1", "address to listen on")
    flags.DEFINE_integer(
        "port", 7860, "port to listen on; 0: any free port", lower_bound=0, upper_bound=65535
    )
    flags.DEFINE_string("auth_file", None, "text file with one user:password per line")


def main(flags):
    auth = access.read_auth(flags.auth_file)
    port = check(flags.host, flags.port, auth)
    model_flags.check_flags(flags)
    models = model_flags.load(flags)
    demo(*models, lang=flags.lang, host=flags.host, port=port, auth=auth)


def demo(model, against=None, *, lang="en", host="127.0.0.1", port=7860, auth=None):
    """Serve the page until the process is interrupted; print its address.

    Args:
      model: an `inference.LoadedModel`.
      against: a second model, shown side by side; None: only one.
      lang: language of the page, "en" or "ko".
      host: address to listen on.
      port: port to listen on; 0: any free port.
      auth: a list of (user, password); required unless the host is a loopback address.

    Raises:
      UserError: if the host requires passwords, the port is in use, gradio is not installed, or a
        model has images that are not square.
    """
    port = check(host, port, auth)

    from vit_jax.demo import serve

    models = [model] if against is None else [model, against]
    if any(isinstance(model.image, tuple) for model in models):
        raise UserError("the page shows square images; for a model of others, run tools.attend")
    serve.serve(models, lang, host, port, auth)


def check(host, port, auth):
    """Check that the server can start, before the model is loaded; return the port.

    Raises:
      UserError: as in `demo`.
    """
    access.check_host(host, auth)
    if importlib.util.find_spec("gradio") is None:
        raise UserError("gradio is not installed; run make install EXTRA=demo")
    return access.free_port(host, port)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
