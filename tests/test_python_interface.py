"""`import hapicl`: light, complete, and every name with an example that runs."""

import ast
import doctest
import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import hapicl
from hapicl.maskgen.building import build as build_module
from hapicl.maskgen.building.build import build_masks
from hapicl.maskgen.building.pool import Runner
from hapicl.maskgen.building.worker import make_rows

WITHOUT_EXAMPLE = {"UserError", "evaluate"}  # evaluate is a room; its functions are looked at below


class HereRunner(Runner):
    """Runs tasks in this process."""

    def _stream(self, tasks, under_way):
        for task in tasks:
            under_way[task] = None
            yield make_rows(self.images, task, self.maker)


@pytest.fixture
def workplace(tmp_path, photo_folder, monkeypatch):
    """A folder like a user's: photos, their masks, and a few labelled images."""
    photo_folder.rename(tmp_path / "photos")
    monkeypatch.setattr(build_module, "Runner", HereRunner)
    monkeypatch.chdir(tmp_path)
    build_masks("photos", "masks.h5", "fast")
    write_labelled(tmp_path / "labelled")
    write_streets(tmp_path / "streets")
    write_boxes(tmp_path / "boxes")
    torch.save(torchvision.models.resnet18().state_dict(), "resnet18.pth")
    return tmp_path


def write_labelled(root):
    """Two classes of three images: light and dark ones."""
    generator = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 150)):
        (root / name).mkdir(parents=True)
        for number in range(3):
            pixels = generator.integers(low, low + 100, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")


def write_streets(root):
    """Eight images whose brighter half is the second class."""
    generator = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for number in range(8):
        labels = np.zeros((40, 40), np.uint8)
        labels[:, number * 4 :] = 1
        pixels = generator.integers(0, 100, (40, 40, 3), dtype=np.uint8) + 150 * labels[:, :, None]
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        Image.fromarray(labels).save(root / "labels" / f"{number}.png")


def write_boxes(root):
    """Eight images with a bright square each, and their boxes as COCO has them."""
    (root / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(8):
        pixels = generator.integers(0, 80, (40, 40, 3), dtype=np.uint8)
        pixels[number : number + 16, 8:24] += 150
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 40, "width": 40})
        box = {"bbox": [8, number, 16, 16], "area": 256, "iscrowd": 0}
        annotations.append({"id": number, "image_id": number, "category_id": 1, **box})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (root / "boxes.json").write_text(json.dumps(content))


def examples():
    """(name, what has the docstring) of all that is offered."""
    found = [(name, getattr(hapicl, name)) for name in hapicl.__all__ if name not in WITHOUT_EXAMPLE]
    found = [(name, sys.modules["hapicl.pretrain.train"].pretrain if name == "pretrain" else value)
             for name, value in found]  # fmt: skip
    return [*found, *((name, getattr(hapicl.evaluate, name)) for name in hapicl.evaluate.__all__)]


def test_every_name_is_offered_and_has_an_example_that_runs(workplace):
    import hapicl.pretrain.train  # the package of that name is called like its function

    finder = doctest.DocTestFinder(recurse=False, exclude_empty=False)
    for name, value in examples():
        known = {**vars(sys.modules[value.__module__]), "hapicl": hapicl}
        (test,) = finder.find(value, name, globs=known)
        assert test.examples, f"{name} has no example"
        result = doctest.DocTestRunner(verbose=False).run(test)
        assert result.failed == 0, f"the example of {name}"


def test_names_are_listed_for_completion_and_unknown_ones_are_errors():
    assert set(hapicl.__all__) <= set(dir(hapicl))
    assert set(hapicl.evaluate.__all__) <= set(dir(hapicl.evaluate))
    for module in (hapicl, hapicl.evaluate):
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            _ = module.nothing


def test_the_room_pretrain_is_called_like_its_function(monkeypatch):
    import hapicl.pretrain.train as train

    monkeypatch.setattr(train, "pretrain", lambda settings, *, show: (settings, show))
    assert hapicl.pretrain("settings", show=False) == ("settings", False)
    assert hapicl.pretrain.train is train


def test_importing_is_light():
    program = (
        "import sys, time; start = time.process_time(); import hapicl; spent = time.process_time() - start\n"
        "heavy = {'torch', 'pydantic', 'numpy', 'numba', 'cv2', 'h5py'} & set(sys.modules)\n"
        "import json; print(json.dumps([spent, sorted(heavy), dir(hapicl)]))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True) for _ in range(3)
    ]
    answers = [json.loads(done.stdout) for done in runs]
    assert min(seconds for seconds, *_ in answers) < 0.2
    assert all(heavy == [] for _, heavy, _ in answers)


def test_a_result_is_that_of_the_command_and_is_kept_on_request(workplace):
    from hapicl.evaluate.result import read_result

    options = {"arch": "resnet18", "image_size": 32, "say": str, "show": False}
    result = hapicl.evaluate.knn(
        "random", train="labelled", test="labelled", out="knn.json", changes={"k": 2}, **options
    )
    kept = read_result(pathlib.Path("knn.json"))
    assert (kept["mean"], kept["parameters"]["k"]) == (result["mean"], 2)
    with pytest.raises(hapicl.UserError, match="unknown setting 'imagesize'"):
        hapicl.evaluate.knn("random", train="labelled", test="labelled", imagesize=32)
    with pytest.raises(hapicl.UserError, match="unknown setting 'labells'"):
        hapicl.evaluate.segment("random", images="photos", labells="photos")


def test_what_type_checkers_see_is_what_is_imported():
    tree = ast.parse(pathlib.Path(hapicl.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen.keys() == set(hapicl.__all__)
    rooms = {"evaluate": None, "pretrain": "pretrain.train"}  # the second is called like its function
    assert seen == hapicl._HOME | rooms


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The Python of an environment that holds this wheel, and otherwise what is installed for the tests."""
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True, timeout=120)
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own, ours = (
        pathlib.Path(subprocess.check_output([each, "-c", ask], text=True).strip())
        for each in (python, sys.executable)
    )
    wheel.extractall(own)
    # these come behind the wheel, and an editable install among them is not seen
    (own / "libraries.pth").write_text(f"{ours}\n")
    return python


def test_the_notebook_of_the_docs_runs_from_an_installed_wheel(installed, repository, tmp_path, photographs):
    for number, picture in enumerate([*photographs.values()] * 2):
        for folder in ("photos", f"labelled/{number % 2}"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture[:64, :64]).save(tmp_path / folder / f"{number}.png")
    text = (repository / "docs/notebook.md").read_text(encoding="utf-8")
    cells = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(cells) == 6
    check = "import hapicl.pretrain.train; print(hapicl.__file__)\n"
    script = tmp_path / "notebook.py"
    script.write_text(
        'if __name__ == "__main__":\n' + textwrap.indent("\n".join([*cells, check]), "    "), encoding="utf-8"
    )
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [installed, script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=variables)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[-2] in text  # the error that the page shows
    assert pathlib.Path(said[-1]).is_relative_to(installed.parents[1])
