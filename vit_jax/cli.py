"""The command line: flags, --config=FILE[:ARG] with --config.a.b=v, one-line errors, exit codes.

An entry point ends in `if __name__ == "__main__": cli.run(main)`. Nothing here imports JAX or
NumPy, and entry points import them inside `main`, so that --help and mistakes are answered at once.
"""

import ast
import contextlib
import difflib
import errno
import inspect
import os
import re
import runpy
import sys
import traceback
import types
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from vit_jax.config import check, flat, suggest
from vit_jax.errors import INTERRUPTED, NO_SPACE, Diverged, Preempted, UserError
from vit_jax.schema import KIND_NAMES, kind_name
from vit_jax.workdir import storage

FLAGS = flags.FLAGS
CONFIG_HELP = """
--config.KEY=VALUE overrides a key of the recipe: --config.batch_size=64, --config.optim.lr=1e-3.
vit_jax/config.py lists the keys and their defaults. Durations are "1000", "10k" or "1e3" steps, or
"3ep" epochs."""
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


def figure_path(flag, text):
    """The Path in --flag=text of a figure to write. Makes its directory.

    Raises:
      UserError: unless it is a .png, .pdf or .svg.
    """
    path = Path(text).expanduser()
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--{flag}={path} must be a .png, .pdf or .svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def check_local(flag, text):
    """Raise UserError where --flag=text is in a bucket, but has to be on this machine."""
    if storage.is_bucket(text):
        raise UserError(f"--{flag}={text} must be a folder of this machine, not in a bucket")


def define_config(required=True):
    """Define --config. After parsing, `FLAGS.config` is a checked, locked ConfigDict, or None."""
    flags.DEFINE_string("config", None, "recipe: FILE.py, or FILE.py:ARG", required=required)


def arguments(function, flags):
    """Keyword arguments of a function: the values of the flags of the same names."""
    names = inspect.signature(function).parameters
    return {name: flags[name].value for name in names if name in flags}


def run(main, args=None):
    """Parse sys.argv, call `main(FLAGS)` and exit.

    Exit codes: 0 done, 2 the user's mistake, 3 diverged, 4 no space, 75 preempted and saved, 130
    interrupted; else what `main` returns. Any other exception is a bug and keeps its traceback.

    Args:
      main: function of the flags.
      args: what may follow the flags, as --help shows it ("IMAGE..."); the call is then
        `main(FLAGS, words)`.
    """
    ours = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    if any(re.fullmatch(r"-h|-\?|--?help(short|full)?", word) for word in ours):
        print(_help(main, args))
        sys.exit(0)
    try:
        words = _parse(sys.argv)
        if words and args is None:
            raise UserError(
                f"'{words[0]}' is not a flag; flags are written --name=value, see --help"
            )
        sys.exit(main(FLAGS) if args is None else main(FLAGS, words))
    except (Exception, KeyboardInterrupt) as e:
        code, message = _outcome(e)
        if code is None:
            raise
    print(message if code == Preempted.exit_code else f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _parse(argv):
    """Set FLAGS from argv, and FLAGS.config with its overrides. -> the words that are no flags"""
    plain, overrides = argv[:1], []
    queue = argv[1:]
    while queue and queue[0] != "--":
        word = queue.pop(0)
        match = re.fullmatch(r"--?(no)?config\.([^=]*)(?:=(.*))?", word, re.DOTALL)
        if match is None:
            plain.append(word)
            continue
        value = "false" if match[1] else match[3]
        if value is None and queue and re.match(r"[^-]|-[\d.]|$", queue[0]):
            value = queue.pop(0)
        overrides.append((match[2], value))
    try:
        FLAGS.unparse_flags()
        FLAGS.set_gnu_getopt(True)
        words = FLAGS(plain + queue)[1:]
    except flags.Error as e:
        missing = re.match(r"flag --(\w+)=None", str(e))
        message = f"--{missing[1]}=... is missing; see --help" if missing else one_line(e)
        raise UserError(message) from None
    spec = FLAGS["config"].value if "config" in FLAGS else None
    if overrides and spec is None:
        raise UserError(f"--config.{overrides[0][0]} needs --config=FILE before it")
    if spec is not None:
        config = load_recipe(spec)
        for key, text in overrides:
            override(config, key, text)
        check(config)
        FLAGS.config = config.lock()
    return words


def recipe_module(spec):
    """Run the recipe FILE or FILE:ARG.

    Returns:
      The recipe as a module, and ARG, None where there is none.

    Raises:
      UserError: with the line where the file went wrong.
    """
    name, colon, arg = (spec, "", "") if os.path.isfile(spec) else spec.partition(":")
    path = Path(name).expanduser()
    if not path.is_file():
        near = difflib.get_close_matches(path.stem, [p.stem for p in path.parent.glob("*.py")], 1)
        hint = f"; did you mean {path.with_name(near[0] + '.py')}?" if near else ""
        raise UserError(f"--config={spec}: no such file{hint}")
    beside = str(path.resolve().parents[1])  # a recipe may import another one
    if beside not in sys.path:
        sys.path.append(beside)
    with _blaming(path):
        module = types.SimpleNamespace(**runpy.run_path(str(path), run_name=path.stem))
        if not hasattr(module, "get_config"):
            raise UserError("defines no get_config()")
        if colon and not inspect.signature(module.get_config).parameters:
            raise UserError(f"get_config() takes no argument, so ':{arg}' is not allowed")
    return module, arg if colon else None


def load_recipe(spec):
    """The ConfigDict of the recipe FILE or FILE:ARG. Raises UserError."""
    module, arg = recipe_module(spec)
    with _blaming(Path(module.__file__)):
        config = module.get_config(*([] if arg is None else [arg]))
        if not isinstance(config, ConfigDict):
            raise UserError("get_config() must return a ConfigDict; start from config.defaults()")
        return config


@contextlib.contextmanager
def _blaming(path):
    """Turn exceptions into a UserError that names the file and the line in it."""
    try:
        yield
    except Exception as e:
        lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == str(path)]
        if isinstance(e, SyntaxError) and e.filename == str(path):
            lines.append(e.lineno)
        at = f", line {lines[-1]}" if lines else ""
        raise UserError(f"{path}{at}: {one_line(e)}") from e


def override(config, key, text):
    """Set one key to a text, read as the type of the key's value. Raises UserError."""
    values = flat(config)
    flag = f"--config.{key}"
    if key not in values:
        inside = [name for name in values if name.startswith(f"{key}.")]
        if inside:
            raise UserError(f"{flag} is a group of keys; set one of them, such as {inside[0]}")
        raise UserError(f"{flag}: config has no key '{key}'; {suggest(key, values)}")
    *groups, leaf = key.split(".")
    for group in groups:
        config = config[group]
    kind = config.get_type(leaf)
    try:
        config[leaf] = None if (text, config[leaf]) == ("None", None) else _value(text, kind)
    except (ValueError, TypeError, SyntaxError, OverflowError):
        said = f"'{text}'" if text is not None else "no value"
        raise UserError(f"{flag} must be {kind_name(kind)}; got {said}") from None


def _value(text, kind):
    """The text as this type. Raises ValueError or SyntaxError."""
    if kind is bool:
        return flags.BooleanParser().parse("true" if text is None else text)
    if text is None:
        raise ValueError
    if kind is int and not re.fullmatch(r"[+-]?\d+", text):
        number = float(text)  # 1e3 is a whole number too
        return int(number) if number.is_integer() else kind(text)
    if kind in (int, float, str):
        return kind(text)
    if re.fullmatch(r"[A-Za-z_]\w*(,[A-Za-z_]\w*)*", text):
        return tuple(text.split(","))
    value = ast.literal_eval(text)
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _outcome(e):
    """The exit code and message of an exception; (None, None) for a bug."""
    if isinstance(e, (UserError, Diverged, Preempted)):
        return e.exit_code, str(e)
    if isinstance(e, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    chain = e
    while chain is not None:
        full = isinstance(chain, OSError) and chain.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(chain):
            where = f" for {chain.filename}" if getattr(chain, "filename", None) else ""
            return NO_SPACE, f"no space left{where}; free some space and rerun the same command"
        chain = chain.__cause__ or chain.__context__
    if isinstance(e, OSError) and e.errno in UNUSABLE and e.filename:
        return UserError.exit_code, f"cannot use {e.filename}: {e.strerror}"
    return None, None


def _help(main, args):
    """The text of --help."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    command = f"python -m {spec.name}" if spec else f"python {sys.argv[0]}"
    doc = sys.modules[main.__module__].__doc__ or ""
    text = [f"{command} [--flag=value ...] {args or ''}".rstrip(), "", doc.strip(), "", "flags:"]
    modules = FLAGS.flags_by_module_dict().items()
    ours = {f.name: f for name, fs in modules if not name.startswith("absl") for f in fs}
    for name, flag in ours.items():
        default = "" if flag.default in (None, False, "") else f" (default: {flag.default})"
        name = f"--[no]{name}" if flag.boolean else f"--{name}=..."
        text.append(f"  {name:22} {flag.help}{default}")
    if "config" in ours:
        text.append(CONFIG_HELP)
    return "\n".join(text)


def one_line(e):
    """The message of an exception of other code, in one plain line."""
    text = " ".join(str(e).split())
    cast = re.match(r"Could not override field '(\w+)'.*?\. (.*) is of original type", text)
    if cast:
        kind = text.removesuffix("'>").rpartition("type <class '")[2].rpartition(".")[2]
        words = KIND_NAMES.get(kind, "of another type")
        quotes = (
            '; put it in quotes, such as "100" or "3ep" for a duration' if kind == "str" else ""
        )
        return f"{cast[1]!r} must be {words}; got {cast[2]}{quotes}"
    if isinstance(e, SyntaxError):
        return f"{e.msg}: {(e.text or '').strip()}"
    if isinstance(e, (AttributeError, KeyError)):
        text = text.replace('"', "").strip("'")
        return f"there is no '{text}'" if re.fullmatch(r"\w+", text) else text
    return (text if isinstance(e, ValueError) else f"{type(e).__name__}: {text}")[:300]
