"""The command line: flags, --config=FILE[:ARG] with --config.a.b=v, one-line errors, exit codes.

An entry point ends with `if __name__ == "__main__": cli.run(main)`. This module does not import JAX
or NumPy, and entry points import them inside `main`, so that --help and errors are printed within a
second.
"""

import ast
import contextlib
import difflib
import errno
import inspect
import itertools
import math
import os
import re
import runpy
import select
import sys
import traceback
import types
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from vit_jax.config import check, defaults, flat, schema, suggest
from vit_jax.errors import (
    INTERRUPTED,
    Diverged,
    NoSpace,
    Preempted,
    UserError,
    WorkdirLost,
    printable,
)
from vit_jax.schema import KIND_NAMES, SIZE, kind_name, parse_size, shown
from vit_jax.workdir import storage

FLAGS = flags.FLAGS
CONFIG_HELP = """
--config.KEY=VALUE overrides a key of the recipe: --config.batch_size=64, --config.optim.lr=1e-3.
vit_jax/config.py lists the keys and their defaults. Durations are "1000", "10k" or "1e3" steps, or
"3ep" epochs."""
MAX_LINES = 3  # of an error message
MAX_LINE_CHARS = 1000
NUMBER = re.compile(r"-?[\d.]+(e-?\d+)?")
CLOSED_PIPE = 141  # exit code: 128 + SIGPIPE, as in shells
FILE_ERRORS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


def figure_path(flag, text):
    """Return the Path of a figure, passed as --flag=text, and create its directory.

    Raises:
      UserError: if the suffix is not .png, .pdf or .svg.
    """
    path = Path(text).expanduser()
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--{flag}={path} must be a .png, .pdf or .svg file")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def check_local(flag, text):
    """Raise UserError if --flag=text is in a bucket instead of the local file system."""
    if storage.is_bucket(text):
        raise UserError(f"--{flag}={text} must be a local directory, not a bucket")


def define_config(required=True, use_defaults=False):
    """Define --config. Parsing sets `FLAGS.config` to a checked, locked ConfigDict, or None.

    `FLAGS["config"].overrides` are the pairs (key, text) of all --config.KEY=VALUE.

    Args:
      required: whether the command needs --config.
      use_defaults: whether --config.KEY=VALUE without --config changes the defaults of all keys.
    """
    flags.DEFINE_string("config", None, "recipe: FILE.py, or FILE.py:ARG", required=required)
    FLAGS["config"].use_defaults = use_defaults


def arguments(function, flags):
    """Return the keyword arguments of a function from the flags with the same names."""
    names = inspect.signature(function).parameters
    return {name: flags[name].value for name in names if name in flags}


def run(main, args=None):
    """Parse sys.argv, call `main(FLAGS)` and exit.

    Exit codes: the return value of `main`, where None is 0; 2 user error, 3 diverged, 4 no space
    left, 5 workdir lost, 75 preempted (rerun to resume), 130 interrupted, 141 if the reader of the
    output has closed it, as `head` does. Any other exception is a bug; its traceback is printed.

    Args:
      main: function of the flags.
      args: placeholder of the positional arguments in --help, such as "IMAGE..."; None: the command
        takes none. If given, the call is `main(FLAGS, arguments)`.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name must not fail in a locale without its letters
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(main, args)
        sys.stdout.flush()
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed(stream)]
        if not closed:  # a network connection
            raise
        for stream in closed:  # Python flushes them at exit, and would report the error again
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        code = CLOSED_PIPE
    sys.exit(code)


def _run(main, args):
    """Parse sys.argv, call `main`, report errors and return the exit code; see `run`."""
    before_separator = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    if any(re.fullmatch(r"-h|-\?|--?help(short|full)?", arg) for arg in before_separator):
        print(_help(main, args))
        return 0
    try:
        positional = _parse(sys.argv)
        if positional and args is None:
            raise UserError(_unexpected(positional[0]))
        return main(FLAGS) if args is None else main(FLAGS, positional)
    except (Exception, KeyboardInterrupt) as e:
        code, message = outcome(e)
        if code is None:
            raise
    message = _shorten(message)
    print(message if code == Preempted.exit_code else f"error: {message}", file=sys.stderr)
    return code


def _shorten(message):
    """Return a message as printable lines, with the middle of long lines left out."""
    lines = message.splitlines()
    lines = [printable(line) for line in (lines if len(lines) <= MAX_LINES else [message])]
    half = MAX_LINE_CHARS // 2
    return "\n".join(
        line if len(line) <= MAX_LINE_CHARS else f"{line[:half]} ... {line[-half:]}"
        for line in lines
    )


def _is_closed(stream):
    """Return whether a stream is a pipe that its reader has closed."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _parse(argv):
    """Set FLAGS and FLAGS.config with its overrides from argv, and return positional arguments."""
    other_args = argv[:1]
    overrides = []
    queue = argv[1:]
    while queue and queue[0] != "--":
        arg = queue.pop(0)
        match = re.fullmatch(r"--?(no)?config\.([^=]*)(?:=(.*))?", arg, re.DOTALL)
        if match is None:
            other_args.append(arg)
            continue
        value = "false" if match[1] else match[3]
        if value is None and queue and re.match(r"[^-]|-[\d.]|$", queue[0]):
            value = queue.pop(0)
        overrides.append((match[2], value))
    if unknown := _find_unknown_flag(other_args[1:]):
        raise UserError(_unknown_flag(unknown, other_args))
    try:
        FLAGS.unparse_flags()
        FLAGS.set_gnu_getopt(True)
        positional = FLAGS(other_args + queue)[1:]
    except flags.Error as e:
        raise UserError(_parse_error(str(e), other_args)) from None
    for name, flag in _project_flags().items():
        values = flag.value if isinstance(flag.value, list) else [flag.value]
        if flag.present and (not values or "" in (str(value).strip() for value in values)):
            raise UserError(f"--{name} is empty; pass --{name}=VALUE")
        if isinstance(flag.value, float) and not math.isfinite(flag.value):
            raise UserError(f"--{name}={flag.value} must be a finite number")
    spec = FLAGS["config"].value if "config" in FLAGS else None
    needs_spec = "config" not in FLAGS or not FLAGS["config"].use_defaults
    if overrides and spec is None and needs_spec:
        raise UserError(f"--config.{overrides[0][0]} needs --config=FILE")
    if overrides or spec is not None:
        FLAGS.config = build_config(spec, overrides).lock()
        FLAGS["config"].overrides = overrides
    return positional


def _project_flags():
    """Return the flags that this project defines, {name: flag}; absl defines others."""
    modules = FLAGS.flags_by_module_dict().items()
    return {f.name: f for name, fs in modules if not name.startswith("absl") for f in fs}


def _find_unknown_flag(args):
    """Return the first argument that is not a flag of this project, or None.

    The flags of absl, such as --log_dir and --flagfile, are unknown too.
    """
    known = _project_flags()
    queue = iter(args)
    for arg in queue:
        match = re.fullmatch(r"--?([^-=][^=]*)(=.*)?", arg, re.DOTALL)
        if match is None:
            continue
        name, value = match.groups()
        if name in known:
            if value is None and not known[name].boolean:
                next(queue, None)  # the value
        elif not (name.startswith("no") and name[2:] in known and known[name[2:]].boolean):
            return arg
    return None


def _parse_error(text, args):
    """Return the message for an error of absl, which was raised while parsing arguments."""
    match = re.match(r"flag --(\w+)=(.*)", text, re.DOTALL)
    if match is None:
        return " ".join(text.split())
    name, rest = match.groups()
    if rest.startswith("None"):
        return f"--{name}=... is required; see --help"
    given = [value for arg in args for value in (arg, arg.partition("=")[2])]
    given = [shown(value) for value in given if rest.startswith(f"{value}: ")]
    expected = _describe_type(FLAGS[name])
    if not given or not expected:
        return " ".join(text.split())
    return f"--{name}={max(given, key=len)[1:-1]} must be {expected}"


def _describe_type(flag):
    """Return the values that a flag accepts, as text; None if any."""
    if flag.boolean:
        return "true or false"
    if values := getattr(flag.parser, "enum_values", None):
        return f"one of {', '.join(values)}"
    return getattr(flag.parser, "syntactic_help", None)


def _config_keys():
    """Return the keys of the config, for hints; () if the command has no --config."""
    if "config" not in FLAGS:
        return ()
    try:
        return flat(load_recipe(FLAGS["config"].value))
    except (UserError, TypeError):  # the recipe is missing or invalid
        return schema()


def _unknown_flag(arg, args):
    """Return the message for an unknown flag.

    Args:
      arg: the flag as typed, such as "--lr=1e-3".
      args: all arguments of the command; the value may be the next one.
    """
    from vit_jax import habits

    flag, equals, value = arg.partition("=")
    name = flag.lstrip("-")
    following = args[args.index(arg) + 1 :]
    if not equals and following and re.match(r"[^-]|-[\d.]", following[0]):
        numbers = list(itertools.takewhile(NUMBER.fullmatch, following))
        value = ",".join(numbers) or following[0]  # "0.4,1.0" for --global_crops_scale 0.4 1.0
    known = _project_flags()
    hint = habits.hint(name, _config_keys(), value, known)
    similar = difflib.get_close_matches(name, known, 1)
    return f"unknown flag {flag}; " + (
        hint or (f"did you mean --{similar[0]}?" if similar else "see --help")
    )


def _unexpected(arg):
    """Return the message for a positional argument of a command that takes none."""
    from vit_jax import habits

    key, equals, value = arg.partition("=")
    hint = habits.hint(key, _config_keys(), value, _project_flags()) if equals else None
    if hint is None and os.path.isdir(arg):
        hint = habits.hint("data_dir", _config_keys(), arg)
    hint = hint or "pass flags as --name=value, see --help"
    return f"unexpected argument '{arg}'; {hint}"


def recipe_module(spec):
    """Execute the file of a recipe, without calling its `get_config`.

    Args:
      spec: FILE or FILE:ARG.

    Returns:
      The recipe as a module, and ARG or None.

    Raises:
      UserError: if the file does not exist or raises an exception. The message names the line.
    """
    name, colon, arg = (spec, "", "") if os.path.isfile(spec) else spec.partition(":")
    path = Path(name).expanduser()
    if not os.path.isfile(path):
        stems = [p.stem for p in path.parent.glob("*.py")]
        similar = difflib.get_close_matches(path.stem, stems, 1)
        hint = f"; did you mean {path.with_name(similar[0] + '.py')}?" if similar else ""
        raise UserError(f"--config={spec}: no such file{hint}")
    root = str(path.resolve().parents[1])  # so that a recipe can import another one
    if root not in sys.path:
        sys.path.append(root)
    with _recipe_errors(path):
        module = types.SimpleNamespace(**runpy.run_path(str(path), run_name=path.stem))
        if not hasattr(module, "get_config"):
            raise UserError("must define get_config()")
        if colon and not inspect.signature(module.get_config).parameters:
            raise UserError(f"get_config() takes no argument, so ':{arg}' is not allowed")
    return module, arg if colon else None


def load_recipe(spec):
    """Return the ConfigDict of the recipe FILE or FILE:ARG. Raises UserError."""
    return _load(*recipe_module(spec))


def _load(module, arg):
    """Call `get_config` of a recipe."""
    with _recipe_errors(module.__file__):
        config = module.get_config(*([] if arg is None else [arg]))
        if not isinstance(config, ConfigDict):
            raise UserError("get_config() must return a ConfigDict; start from config.defaults()")
        return config


def build_config(spec, overrides=()):
    """Return the checked config of a recipe with overrides.

    A recipe may define `adapt(config, given, arg)`, which is called after the overrides and sets
    keys that depend on the data or on other keys. It must not change the keys in `given`.

    Args:
      spec: FILE or FILE:ARG; None: the defaults of all keys.
      overrides: pairs (key, text) as for `override`.

    Returns:
      ConfigDict.

    Raises:
      UserError: for an invalid recipe, override or config.
    """
    module, arg = (None, None) if spec is None else recipe_module(spec)
    config = defaults() if module is None else _load(module, arg)
    for key, text in overrides:
        override(config, key, text)
    if hasattr(module, "adapt"):
        with _recipe_errors(module.__file__, keep=UserError):
            module.adapt(config, {key for key, _ in overrides}, arg)
    check(config)
    return config


@contextlib.contextmanager
def _recipe_errors(path, keep=()):
    """Convert exceptions, except those of the types `keep`, to a UserError with the line number."""
    path = Path(path)
    try:
        yield
    except keep:
        raise
    except (Exception, SystemExit) as e:  # a recipe may call sys.exit
        lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == str(path)]
        if isinstance(e, SyntaxError) and e.filename == str(path):
            lines.append(e.lineno)
        position = f", line {lines[-1]}" if lines else ""
        raise UserError(f"{path}{position}: {one_line(e)}") from e


def override(config, key, text):
    """Set a key of a config from text, converted to the type of the key.

    Args:
      config: ConfigDict to change.
      key: such as "optim.lr".
      text: the value as on the command line; None: a flag without a value, as for booleans.

    Raises:
      UserError: if the key is unknown or the text cannot be converted.
    """
    values = flat(config)
    flag = f"--config.{key}"
    if key not in values:
        members = [name for name in values if name.startswith(f"{key}.")]
        if members:
            from vit_jax import habits

            example = habits.equivalent(key, values) or members[0]
            raise UserError(f"{flag} is a group of keys; set a single key, such as {example}")
        raise UserError(f"{flag}: config has no key '{key}'; {suggest(key, values, text or '')}")
    *groups, leaf = key.split(".")
    for group in groups:
        config = config[group]
    kind = config.get_type(leaf)
    try:
        config[leaf] = None if (text, config[leaf]) == ("None", None) else _value(text, kind)
    except (ValueError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError):
        given = shown(text) if text is not None else "no value"
        raise UserError(f"{flag} must be {kind_name(kind)}; got {given}") from None


def _value(text, kind):
    """Convert text to a type. Raises ValueError or SyntaxError."""
    if kind is bool:
        return flags.BooleanParser().parse("true" if text is None else text)
    if text is None:
        raise ValueError
    if kind is SIZE:
        if re.fullmatch(r"\d+x\d+", text):
            return parse_size(text)
        value = ast.literal_eval(text)
        return tuple(value) if isinstance(value, (list, tuple)) else _value(text, int)
    if kind is int and not re.fullmatch(r"[+-]?\d+", text):
        number = float(text)  # 1e3 is an integer too
        return int(number) if number.is_integer() else kind(text)
    if kind in (int, float, str):
        return kind(text)
    if re.fullmatch(r"[A-Za-z_]\w*(,[A-Za-z_]\w*)*", text):
        return tuple(text.split(","))
    value = ast.literal_eval(text)
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def outcome(e):
    """Return the exit code and message of an exception; (None, None) for a bug."""
    if isinstance(e, (UserError, Diverged, NoSpace, WorkdirLost, Preempted)):
        return e.exit_code, str(e)
    if isinstance(e, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    if full := storage.full_disk(e):
        file = f" to write {full.filename}" if getattr(full, "filename", None) else ""
        return NoSpace.exit_code, f"no space left{file}; free some space and rerun the same command"
    if isinstance(e, OSError) and e.errno in FILE_ERRORS and e.filename:
        return UserError.exit_code, f"cannot access {e.filename}: {e.strerror}"
    return None, None


def _help(main, args):
    """Return the text of --help."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    command = (
        f"python -m {spec.name.removesuffix('.__main__')}" if spec else f"python {sys.argv[0]}"
    )
    doc = sys.modules[main.__module__].__doc__ or ""
    lines = [f"{command} [--flag=value ...] {args or ''}".rstrip(), "", doc.strip(), "", "flags:"]
    project_flags = _project_flags()
    for name, flag in project_flags.items():
        default = "" if flag.default in (None, False, "") else f" (default: {flag.default})"
        name = f"--[no]{name}" if flag.boolean else f"--{name}=..."
        lines.append(f"  {name:22} {flag.help}{default}")
    if "config" in project_flags:
        lines.append(CONFIG_HELP)
    return "\n".join(lines)


def one_line(e):
    """Return the message of any exception as one plain line."""
    text = " ".join(str(e).split())
    # ml_collections' message for a value of the wrong type.
    type_error = re.match(r"Could not override field '(\w+)'.*?\. (.*) is of original type", text)
    if type_error:
        kind = text.removesuffix("'>").rpartition("type <class '")[2].rpartition(".")[2]
        expected = KIND_NAMES.get(kind, "of another type")
        hint = '; put it in quotes, such as "100" or "3ep" for a duration' if kind == "str" else ""
        return f"{type_error[1]!r} must be {expected}; got {type_error[2]}{hint}"
    if isinstance(e, SyntaxError):
        return f"{e.msg}: {(e.text or '').strip()}"
    if isinstance(e, (AttributeError, KeyError)):
        text = text.replace('"', "").strip("'")
        return f"unknown key or attribute '{text}'" if re.fullmatch(r"\w+", text) else text
    return (text if isinstance(e, ValueError) else f"{type(e).__name__}: {text}")[:300]
