"""The command line: flags, --config=FILE[:ARG] with --config.a.b=v, one-line errors, exit codes.

An entry point ends in `if __name__ == "__main__": cli.run(main)`. Nothing here imports JAX or
NumPy, and entry points import them inside `main`, so that --help and mistakes answer at once.
"""

import ast
import contextlib
import difflib
import errno
import inspect
import os
import re
import sys
import traceback
import types
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from vit_jax.config import check, flat, near
from vit_jax.errors import INTERRUPTED, NO_SPACE, Diverged, Preempted, UserError
from vit_jax.schema import kind_name
from vit_jax.workdir import storage

FLAGS = flags.FLAGS


def figure_path(flag, text):
    """--flag=text as the Path of a figure to write, whose folder is made. Raises UserError."""
    path = Path(text).expanduser()
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--{flag}={path} must be a .png, .pdf or .svg")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--{flag}={path} cannot be written: {error.strerror}") from None
    return path


def check_local(flag, text):
    """UserError for --flag=text in a bucket, where only a folder of this machine will do."""
    if storage.is_address(text):
        raise UserError(f"--{flag}={text} must be a folder of this machine, not in a bucket")


def define_config(required=True):
    """Declares --config. `FLAGS.config` is then a checked, locked ConfigDict, or None."""
    flags.DEFINE_string("config", None, "recipe: FILE.py, or FILE.py:ARG", required=required)


def run(main, args=None):
    """Parses sys.argv, calls `main(FLAGS)` and ends the process with the outcome's exit code.

    Exit codes: 0 done, 2 the user's mistake, 3 diverged, 4 no space, 75 preempted and saved, 130
    interrupted; else what `main` returns. Any other exception is a bug: it keeps its traceback.
    args: what may follow the flags, as --help shows it ("IMAGE..."); main is then called as
    `main(FLAGS, words)`. A ValueError class of vit_jax's own counts as the user's mistake.
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
    """Sets FLAGS from argv, of which --config.a.b=v are taken out first. -> words, no flags."""
    plain, overrides, queue = argv[:1], [], argv[1:]
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
        lacks = re.match(r"flag --(\w+)=None", str(e))
        raise UserError(
            f"--{lacks[1]}=... is missing; see --help" if lacks else one_line(e)
        ) from None
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
    """FILE or FILE:ARG -> the recipe's names as a module, and ARG, None where there is none.

    Raises UserError, with the line where the file went wrong.
    """
    name, colon, arg = (spec, "", "") if os.path.isfile(spec) else spec.partition(":")
    path = Path(name).expanduser()
    try:
        source = path.read_bytes()
    except OSError as e:
        near = difflib.get_close_matches(path.stem, [p.stem for p in path.parent.glob("*.py")], 1)
        hint = f"; did you mean {path.with_name(near[0] + '.py')}?" if near else ""
        raise UserError(f"--config={spec}: {e.strerror}{hint}") from None
    beside = str(path.resolve().parents[1])  # a recipe may import another one
    if beside not in sys.path:
        sys.path.append(beside)
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    with _blaming(path):
        exec(compile(source, str(path), "exec"), module.__dict__)
        if not callable(module.__dict__.get("get_config")):
            raise UserError("defines no get_config()")
        if colon and not inspect.signature(module.get_config).parameters:
            raise UserError(f"get_config() takes no argument, so ':{arg}' is not allowed")
    return module, arg if colon else None


def load_recipe(spec):
    """FILE or FILE:ARG -> the ConfigDict that get_config(ARG) in it makes. Raises UserError."""
    module, arg = recipe_module(spec)
    with _blaming(Path(module.__file__)):
        config = module.get_config(*([] if arg is None else [arg]))
        if not isinstance(config, ConfigDict):
            raise UserError(
                "get_config() must return a ConfigDict; start from vit_jax.config.defaults()"
            )
        return config


@contextlib.contextmanager
def _blaming(path):
    """What goes wrong inside becomes a UserError that names the file and the line in it."""
    try:
        yield
    except Exception as e:
        lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == str(path)]
        number = e.lineno if isinstance(e, SyntaxError) and e.filename == str(path) else None
        at = f", line {number or lines[-1]}" if number or lines else ""
        raise UserError(f"{path}{at}: {one_line(e)}") from e


def override(config, key, text):
    """Sets one key to what the text says, read as the type that is there."""
    values, flag = flat(config), f"--config.{key}"
    if key not in values:
        inside = [name for name in values if name.startswith(f"{key}.")]
        if inside:
            raise UserError(f"{flag} is a group of keys; set one of them, such as {inside[0]}")
        raise UserError(f"{flag}: config has no key '{key}'; {near(key, values)}")
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
    """What the text says, as this type. Raises ValueError or SyntaxError."""
    if kind is bool:
        word = "true" if text is None else text.lower()
        return ["false", "true", "0", "1", "f", "t"].index(word) % 2 == 1
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
    """-> exit code, one or two lines; (None, None) for a bug."""
    if isinstance(e, (Preempted, Diverged)):
        return e.exit_code, str(e)
    if isinstance(e, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    if isinstance(e, ValueError) and type(e).__module__.startswith(("vit_jax.", "__main__")):
        return UserError.exit_code, str(e)
    chain = e
    while chain is not None:
        full = isinstance(chain, OSError) and chain.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(chain):
            where = f" for {chain.filename}" if getattr(chain, "filename", None) else ""
            return NO_SPACE, f"no space left{where}; free some space and rerun the same command"
        chain = chain.__cause__ or chain.__context__
    if isinstance(e, (PermissionError, NotADirectoryError, IsADirectoryError)) and e.filename:
        return UserError.exit_code, f"cannot use {e.filename}: {e.strerror}"
    return None, None


def _help(main, args):
    """What --help prints."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    command = f"python -m {spec.name}" if spec else f"python {sys.argv[0]}"
    text = [f"{command} [--flag=value ...] {args or ''}".rstrip(), ""]
    text += [(sys.modules[main.__module__].__doc__ or "").strip(), "", "flags:"]
    modules = FLAGS.flags_by_module_dict().items()
    ours = {f.name: f for name, fs in modules if not name.startswith("absl") for f in fs}
    for name, flag in ours.items():
        default = "" if flag.default in (None, False, "") else f" (default: {flag.default})"
        name = f"--[no]{name}" if flag.boolean else f"--{name}=..."
        text.append(f"  {name:22} {flag.help}{default}")
    if "config" in ours:
        text += ["", "Any key of the recipe is overridden by --config.KEY=VALUE, such as"]
        text += ["--config.batch_size=64 or --config.optim.lr=1e-3; vit_jax/config.py lists the"]
        text += ['keys with their defaults. Durations: "1000", "10k", "1e3" steps, "3ep" epochs.']
    return "\n".join(text)


def one_line(e):
    """An exception of other code in one plain line."""
    text = " ".join(str(e).split())
    cast = re.match(r"Could not override field '(\w+)'.*?\. (.*) is of original type", text)
    if cast:
        kind = re.search(r"to type <class '(?:.*\.)?(\w+)'>$", text)
        kinds = {k.__name__: k for k in (bool, int, float, str, tuple, ConfigDict)}
        kind = kinds.get(kind and kind[1])
        words = kind_name(kind) if kind else "of another type"
        quotes = '; put it in quotes, such as "100" or "3ep" for a duration' if kind is str else ""
        return f"{cast[1]!r} must be {words}; got {cast[2]}{quotes}"
    if isinstance(e, SyntaxError):
        return f"{e.msg}: {(e.text or '').strip()}"
    if isinstance(e, (AttributeError, KeyError)):
        text = text.replace('"', "").strip("'")
        return f"there is no '{text}'" if re.fullmatch(r"\w+", text) else text
    return (text if isinstance(e, ValueError) else f"{type(e).__name__}: {text}")[:300]
