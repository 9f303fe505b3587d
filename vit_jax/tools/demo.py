"""A page in the browser: drop or paste a picture and look inside a model.

python -m vit_jax.tools.demo --workdir=runs/digits
python -m vit_jax.tools.demo --workdir=runs/supervised --against=runs/dino --lang=ko
python -m vit_jax.tools.demo --weights=FILE.safetensors --model=vit_small_patch16_224

Shows the most probable classes and the attention of every layer and head of a Vision Transformer,
or Grad-CAM of a ResNet. Needs gradio: make install EXTRA=demo. The page loads nothing from other
sites. It is open to this machine alone; another --host needs --auth_file or VIT_JAX_DEMO_AUTH. The
server speaks plain HTTP: put it behind a proxy with TLS before you open it to a network.
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
    flags.DEFINE_integer("port", 7860, "0: any free one", lower_bound=0, upper_bound=65535)
    flags.DEFINE_string("auth_file", None, "text file with user:password per line, to log in")


def main(flags):
    auth = access.read_auth(flags.auth_file)
    port = check(flags.host, flags.port, auth)
    model_flags.check_flags(flags)
    models = model_flags.load(flags)
    demo(*models, lang=flags.lang, host=flags.host, port=port, auth=auth)


def demo(model, against=None, *, lang="en", host="127.0.0.1", port=7860, auth=None):
    """Serve the page until the process is interrupted.

    Args:
      model: `inference.LoadedModel`.
      against: a second one, side by side.
      lang: language of the page, "en" or "ko".
      host: address to listen on.
      port: 0: any free one. The address is printed.
      auth: [(user, password)] to log in with; needed unless the host is a loopback address.

    Raises:
      UserError: if the host needs passwords, the port is taken, or gradio is not installed.
    """
    port = check(host, port, auth)

    from vit_jax.demo import serve

    models = [model] if against is None else [model, against]
    serve.serve(models, lang, host, port, auth)


def check(host, port, auth):
    """Raise UserError for what would stop the server, before anything slow -> a free port."""
    access.check_host(host, auth)
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs gradio, which is not installed: make install EXTRA=demo")
    return access.free_port(host, port)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
