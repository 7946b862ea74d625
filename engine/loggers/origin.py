"""Where a run comes from: the exact command, and the revisions of the code it was started in and by."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

_GIT_SECONDS = 20.0  # a repository on a slow disk is not worth a longer wait


def session_origin(at_step: int) -> dict[str, Any]:
    """What config.json keeps of one session of a run.

    Args:
        at_step: optimiser steps done before.

    Returns:
        `at_step`; `command`, as a shell takes it; `folder`, where it was given; `git`, of that folder, and
        `hapicl_git`, of our own code: each the revision and whether tracked files differ from it, None
        outside a repository. The address of a repository is left out, since it may hold a password.
    """
    package = Path(__file__).resolve().parents[2]
    return {
        "at_step": at_step,
        "command": shlex.join(sys.orig_argv),
        "folder": str(Path.cwd()),
        "git": git_state(Path.cwd()),
        # an installed package may lie inside the user's own repository, in a virtual environment
        "hapicl_git": git_state(package) if _git(package, "ls-files", "__init__.py") else None,
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Revision of the repository that a folder lies in, and whether its tracked files differ from it."""
    revision = _git(folder, "rev-parse", "HEAD")
    if not revision:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"revision": revision, "changed": None if changed is None else bool(changed)}


def _git(folder: Path, *words: str) -> str | None:
    """What git prints; None where there is no git, no repository, or no answer in time."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            check=True,
            timeout=_GIT_SECONDS,
            # looking at a repository must not take its lock from somebody who works in it
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "backslashreplace").strip()
