"""requirements.lock: the exact versions that CI and `make install LOCKED=1` install."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import ROOT

PLATFORMS = {
    "Linux": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "macOS": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
}


def locked():
    """Return the requirements of the lock, each with its number of hashes."""
    text = (ROOT / "requirements.lock").read_text()
    text = re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.partition(" --hash=") for line in text.splitlines()]
    return [(Requirement(pin), hashes.count("sha256:")) for pin, _, hashes in lines]


def required():
    """Return the requirements of the package and its extra dev, with the extras that dev names."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    queue = [line for line in lines if not line.startswith("#")] + extras["dev"]
    found = []
    while queue:
        requirement = Requirement(queue.pop())
        if requirement.name == "vit_jax":
            queue += [line for extra in requirement.extras for line in extras[extra]]
        else:
            found.append(requirement)
    return found


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_versions_are_in_the_ranges(python, platform):
    environment = PLATFORMS[platform]
    environment |= {"python_version": python, "python_full_version": f"{python}.5"}
    versions = {}
    for pin, hashes in locked():
        if pin.marker is None or pin.marker.evaluate(environment):
            (exact,) = pin.specifier
            assert exact.operator == "==" and hashes
            assert pin.name not in versions, f"two versions of {pin.name}"
            versions[pin.name] = exact.version
    names = [canonicalize_name(requirement.name) for requirement in required()]
    assert {"jax", "pytest", "ruff", "numba", "optuna"} <= set(names)
    for name, requirement in zip(names, required(), strict=True):
        assert name in versions, f"{name} is not in requirements.lock; run make lock"
        assert versions[name] in requirement.specifier, f"{name}; run make lock"


def test_lock_names_no_registry_and_no_machine():
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|index-url|find-links|file:|(?<![\w.])/\w", text)
