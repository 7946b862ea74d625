"""Run mypy over the package `hapicl`, which is the repository's root under whatever name the folder has.

mypy takes a package's name from its folder, so it is shown the root through a link of the right name.
"""

import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
ROOMS = ("common", "data", "engine", "models", "maskgen", "pretrain", "evaluate", "demo")

with tempfile.TemporaryDirectory() as folder:
    (pathlib.Path(folder) / "hapicl").symlink_to(ROOT, target_is_directory=True)
    packages = [argument for room in ROOMS for argument in ("-p", f"hapicl.{room}")]
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(ROOT / "setup.cfg"),
        "-m",
        "hapicl.cli",
        *packages,
    ]
    sys.exit(
        subprocess.run(
            [*command, "--cache-dir", str(ROOT / ".mypy_cache")], cwd=folder, check=False
        ).returncode
    )
