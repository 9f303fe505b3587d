"""Download weights from the Hugging Face Hub, hf-hub:ORGANIZATION/NAME[@REVISION], and upload them.

The package huggingface_hub, the extra `hub`, is imported only if such a name is used. Imports no
JAX.
"""

import functools
import re
from pathlib import Path

from vit_jax.errors import UserError, printable

PREFIX = "hf-hub:"
REPOSITORY = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
FILES = (  # patterns; a repository has weights of other frameworks too
    *("config.json", "preprocessor_config.json"),
    *("model.safetensors", "model.safetensors.index.json", "model-*.safetensors"),
)
OTHER_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")
INSTALL_HINT = "run pip install 'vit_jax[hub]' or pip install huggingface_hub"


def is_hub(spec):
    """Return whether a name is one of the Hugging Face Hub."""
    return str(spec).startswith(PREFIX)


def commit(directory):
    """Return the commit of a downloaded snapshot."""
    return Path(directory).name


@functools.cache
def download(spec):
    """Download the weights and config.json of a repository, or find them in the cache.

    Args:
      spec: hf-hub:ORGANIZATION/NAME, with @ and a branch, tag or commit.

    Returns:
      The directory of the snapshot; its name is the commit.

    Raises:
      UserError: if the name is invalid, the package is missing, there is no such repository, or it
        is neither reachable nor in the cache.
    """
    match = REPOSITORY.fullmatch(spec.removeprefix(PREFIX))
    form = f"the form is {PREFIX}ORGANIZATION/NAME or {PREFIX}ORGANIZATION/NAME@REVISION"
    if not match:
        raise UserError(f"{printable(spec)}: {form}")
    huggingface_hub = _import(spec)
    errors = huggingface_hub.errors
    find = functools.partial(
        huggingface_hub.snapshot_download, match["id"], revision=match["revision"]
    )
    try:
        path = Path(find(allow_patterns=FILES))
        if not any(path.glob("model*.safetensors")):
            path = Path(find(allow_patterns=(*FILES, *OTHER_FILES)))
    except errors.HFValidationError:
        problem = form
    except errors.GatedRepoError:
        problem = "access must be requested on its page; then log in with hf auth login"
    except errors.RepositoryNotFoundError:
        problem = "there is no such repository, or it is private; log in with hf auth login"
    except errors.RevisionNotFoundError:
        problem = f"there is no revision {match['revision']}"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        problem = (
            "it is not in the cache, and the Hugging Face Hub is not reachable, or HF_HUB_OFFLINE "
            f"is set; on a machine with access, run hf download {match['id']}"
        )
    except (errors.HfHubHTTPError, OSError) as error:
        problem = f"the download failed: {printable(' '.join(str(error).split()))[:200]}"
    else:
        return path
    raise UserError(f"{spec}: {problem}")


def check_push(repository):
    """Raise UserError unless a name is ORGANIZATION/NAME and huggingface_hub is installed."""
    match = REPOSITORY.fullmatch(repository)
    if not match or match["revision"]:
        raise UserError(f"--push={printable(repository)} must be ORGANIZATION/NAME")
    _import(f"--push={repository}")


def push(repository, directory):
    """Upload a directory to a repository, which is created if it does not exist.

    Args:
      repository: ORGANIZATION/NAME.
      directory: a directory with weights and a README.md.

    Returns:
      The address of the commit.

    Raises:
      UserError: if the upload fails; the directory is kept.
    """
    huggingface_hub = _import(repository)
    try:
        huggingface_hub.create_repo(repository, exist_ok=True)
        return str(huggingface_hub.upload_folder(repo_id=repository, folder_path=directory))
    except Exception as error:  # those of HTTP libraries too
        cause = error.__cause__ if isinstance(error, RuntimeError) else None  # of a failed LFS file
        problem = printable(" ".join(str(cause or error).split()))[:200].rstrip(".")
        raise UserError(
            f"--push={repository}: the upload failed: {problem}; log in with hf auth login, then "
            f"run hf upload {repository} {directory}"
        ) from None


def _import(what):
    """Return the module huggingface_hub, or raise UserError."""
    try:
        import huggingface_hub
        from huggingface_hub import errors  # noqa: F401  as an attribute
    except ImportError:
        raise UserError(f"{what} needs the package huggingface_hub; {INSTALL_HINT}") from None
    return huggingface_hub
