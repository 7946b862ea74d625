"""What a user installs: the wheel, its metadata, a quick command line."""

import configparser
import os
import resource
import subprocess
import sys
from email import message_from_string

import pytest
from architecture import ROOMS, tracked

import hapicl

ROOT_MODULES = {"__init__.py", "__main__.py", "cli.py"}


def test_the_wheel_holds_exactly_the_packages(wheel, repository):
    packages = setup_cfg(repository)["options"]["packages"].split()
    expected = {"hapicl/py.typed"}
    for package in packages:
        folder = repository.joinpath(*package.split(".")[1:])
        patterns = ["*.py", *package_data(repository).get(package, [])]
        expected |= {
            path.relative_to(repository).as_posix() for pattern in patterns for path in folder.glob(pattern)
        }
    expected = {name if name.startswith("hapicl/") else f"hapicl/{name}" for name in expected}
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == expected
    assert {name for name in found if name.count("/") == 1 and name.endswith(".py")} == {
        f"hapicl/{name}" for name in ROOT_MODULES
    }


def test_every_package_of_the_tree_is_listed(repository):
    listed = set(setup_cfg(repository)["options"]["packages"].split())
    folders = {
        ".".join(["hapicl", *name.split("/")[:-1]])
        for name in tracked(repository, "*.py")
        if name.split("/")[0] in ROOMS
    }
    assert listed == folders | {"hapicl"}


def test_every_data_file_of_the_rooms_is_shipped(wheel, repository):
    shipped = set(wheel.namelist())
    kept = [name for name in tracked(repository) if name.split("/")[0] in ROOMS]
    assert {f"hapicl/{name}" for name in kept} <= shipped


def test_the_metadata_says_who_may_use_it_and_how_to_start_it(wheel):
    folder = f"hapicl-{hapicl.__version__}.dist-info"
    metadata = message_from_string(wheel.read(f"{folder}/METADATA").decode())
    assert metadata["Name"] == "hapicl"
    assert metadata["Version"] == hapicl.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra")) >= {"test", "eval", "bench", "docs", "dask", "ray"}
    assert "hapicl = hapicl.cli:main" in wheel.read(f"{folder}/entry_points.txt").decode()
    assert "Apache License" in wheel.read(f"{folder}/licenses/LICENSE").decode()
    assert metadata.get_payload().startswith("# hapicl")


def test_no_requirement_of_stage_one_or_two_is_copyleft_or_needs_a_display(repository):
    required = setup_cfg(repository)["options"]["install_requires"].lower()
    assert "opencv-python-headless" in required
    assert "pymaxflow" not in required
    assert "opencv-python>" not in required


def test_help_is_quick_and_imports_no_heavy_library():
    program = (
        "import sys; sys.argv = ['hapicl', '--help']\n"
        "from hapicl.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'torchvision', 'numba', 'cv2', 'skimage', 'sklearn', 'scipy', 'matplotlib'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    # processor time of the lesser of several starts: a busy machine must not fail it
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert "HEAVY []" in done.stdout
        assert "hapicl" in done.stdout
    assert min(seconds) < 0.5, f"hapicl --help took {min(seconds):.2f} s"


def test_version_is_printed():
    done = subprocess.run(
        [sys.executable, "-m", "hapicl", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["hapicl,", "version", hapicl.__version__]


def test_every_command_of_the_help_can_be_asked_for_help():
    from hapicl.cli import COMMANDS

    for name in COMMANDS:
        command = [sys.executable, "-m", "hapicl", name, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Usage: hapicl" in done.stdout


@pytest.mark.parametrize(
    "name", ["data/images/decode.py", "data/__init__.py", "tests/data/test_geometry.py", "docs/masks.md"]
)
def test_gitignore_hides_no_source(repository, name):
    tracked(repository)  # skips without git
    done = subprocess.run(["git", "check-ignore", "--no-index", "--quiet", name], cwd=repository, check=False)
    assert done.returncode == 1


def setup_cfg(repository):
    """The parsed setup.cfg."""
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.read(repository / "setup.cfg", encoding="utf-8")
    return parser


def package_data(repository):
    """Glob patterns of data files by package."""
    section = setup_cfg(repository)["options.package_data"]
    return {package: section[package].replace(",", " ").split() for package in section}


def test_the_command_line_prints_a_users_mistake_without_a_traceback(tmp_path):
    environment = {**os.environ, "COLUMNS": "200"}
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-m", "hapicl", "masks", "build", "--images", tmp_path / "empty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 2
    assert "empty" in done.stderr
    assert "Traceback" not in done.stderr
