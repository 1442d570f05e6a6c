"""PEP 517 backend: setuptools, asking for torch and cmake only if the machine lacks them.

The kernels use only torch's stable ABI, so the headers of any torch >= 2.11 will do and the result
loads into any other. The torch of the environment that pip installs into is used if it is there.
Without this, `pip install .` into an environment that has torch would download it a second time.
"""

from __future__ import annotations

import os
import re
import subprocess

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 (the hooks that stay as they are)
from torch_folder import OLDEST_TORCH, installed_torch

OLDEST_CMAKE = (3, 24)


def _has_cmake() -> bool:
    """Whether the cmake on PATH works here.

    The command that pip installed into the user's environment imports a Python package, which build
    isolation hides: it is found and does not run.
    """
    try:
        answer = subprocess.run(["cmake", "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    version = re.match(r"cmake version (\d+)\.(\d+)", answer.stdout)
    return version is not None and tuple(map(int, version.groups())) >= OLDEST_CMAKE


def _native_requirements() -> list[str]:
    if os.environ.get("VQVAE2_FAST_BUILD") == "python":
        return []
    torch = [] if installed_torch() else ["torch>={}.{}".format(*OLDEST_TORCH)]
    cmake = [] if _has_cmake() else ["cmake>={}.{}".format(*OLDEST_CMAKE)]
    return [*torch, *cmake]


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_native_requirements()]


def get_requires_for_build_editable(config_settings: dict | None = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_native_requirements()]
