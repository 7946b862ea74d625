"""Install pip into an environment that has none, with the standard library alone.

    python3 .ci/pip_from_pypi.py .venv/bin/python

For Debian and Ubuntu without python3-venv and python3-pip: their Python makes environments but ships no pip.
The newest wheel is taken from PyPI, its SHA-256 compared with the one PyPI states, and run to install itself.
"""

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request

INDEX = "https://pypi.org/pypi/pip/json"


def main() -> None:
    """Fetch, check, install."""
    with urllib.request.urlopen(INDEX, timeout=60) as answer:
        files = json.load(answer)["urls"]
    wheel = next(entry for entry in files if entry["packagetype"] == "bdist_wheel")
    # a mirror may state the address relative to its own
    with urllib.request.urlopen(urllib.parse.urljoin(INDEX, wheel["url"]), timeout=60) as answer:
        content = answer.read()
    if hashlib.sha256(content).hexdigest() != wheel["digests"]["sha256"]:
        sys.exit(f"{wheel['filename']} does not have the SHA-256 that PyPI states; try again later")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / wheel["filename"]
        path.write_bytes(content)
        command = [sys.argv[1], f"{path}/pip", "install", "--quiet", "--no-index", str(path)]
        sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:  # what urllib raises
        sys.exit(f"cannot fetch pip from {INDEX}: {error}")
