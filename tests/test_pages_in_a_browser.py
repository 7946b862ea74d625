"""Every kind of page in a real browser: no error, nothing wider than the window, the numbers of the files.

Needs Playwright (`pip install playwright`) and a Chromium: its own, or one of the system.
"""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from hapicl.data.images.folder import Folder
from hapicl.data.masks.writer import pack_mask, write_masks
from hapicl.evaluate.compare.design import cells
from hapicl.evaluate.compare.outcome import Comparison
from hapicl.evaluate.compare.report.files import write_reports
from hapicl.evaluate.compare.run import Measured
from hapicl.evaluate.compare.settings import CompareSettings
from hapicl.evaluate.compare.verdict import findings
from hapicl.evaluate.embedding.files import FeatureFile
from hapicl.evaluate.embedding.neighbours import near_duplicates
from hapicl.evaluate.embedding.page import show_neighbours
from hapicl.evaluate.report.page import result_page, table_page
from hapicl.evaluate.report.table import gather
from hapicl.evaluate.result import Outcome, Run, make_result, write_result
from hapicl.maskgen.inspection.compare import show_comparison
from hapicl.maskgen.inspection.page import gallery_page
from hapicl.pretrain.report.page import write_report

PAGES = ("masks", "compared", "report", "result", "table", "compare", "neighbours")
LONG = "a_folder/with_a_name_that_nobody_would_break_anywhere_since_it_has_no_spaces_at_all_0123456789"


@pytest.fixture(scope="module")
def browser():
    """A Chromium without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    system = next((path for name in names if (path := shutil.which(name))), None)
    with playwright.sync_playwright() as started:
        try:
            opened = started.chromium.launch(executable_path=system, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium: apt-get install chromium ({str(error).splitlines()[0]})")
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """One page of each kind, and the numbers that it must show."""
    folder = tmp_path_factory.mktemp("pages")
    numbers = {"masks": _masks(folder), "compared": [], "report": _report(folder)}
    numbers["compare"], numbers["neighbours"] = _compare(folder), _neighbours(folder)
    return folder, numbers | _results(folder)


def _masks(folder):
    """Masks of six wide and high images, in two files."""
    rng = np.random.default_rng(0)
    (folder / "images" / LONG).mkdir(parents=True)
    covered = []
    for number, out in enumerate(("first.h5", "second.h5")):
        rows = []
        for image in range(6):
            size = (60, 300) if image % 2 else (300, 60)
            name = f"{LONG}/{image}.png"
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / "images" / name)
            mask = np.zeros(size, bool)
            mask[10 : 20 + 4 * image + number, 10:40] = True
            covered.append(mask.mean())
            rows.append(pack_mask(name, mask, size, confidence=0.5))
        recipe = {"name": "box", "a_long_parameter": LONG}
        write_masks(folder / out, rows, {"image_root": str(folder / "images"), "recipe": recipe})
    gallery_page(folder / "first.h5", folder / "masks.html")
    show_comparison(folder / "first.h5", folder / "second.h5", folder / "compared.html")
    return ["6 ok", f"{np.mean(covered[:6]):.3f}"]


def _report(folder):
    """Two runs of two methods, 60 lines each."""
    last = []
    for name, method in (("one", "simclr"), ("two", "densecl")):
        run = folder / name
        run.mkdir()
        config = {
            "settings": {"method": method, "arch": "resnet18", "out": LONG, "images": None, "masks": "m.h5"},
            "data": {"images": 12},
            "total_steps": 60,
            "environment": {"device": "cpu"},
        }
        (run / "config.json").write_text(json.dumps(config))
        lines = [
            {"step": step, "loss": 5 + len(last) - step / 17, "loss/instance": 4 - step / 19, "seconds": 2.0}
            | {"chance/instance": 3.9, "schedule/lr": step / 60, "speed/samples_per_second": 90.0 + step % 7}
            for step in range(1, 61)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        np.savez(run / "views.npz", views=np.full((2, 2, 32, 32, 3), 200, np.uint8))
        last += [f"{lines[-1]['loss']:.4g}", f"{lines[-1]['speed/samples_per_second']:.4g}"]
    write_report([str(folder / "one"), str(folder / "two")], folder / "report.html")
    return [*last, "2:00"]


def _results(folder):
    """A segmentation result with its page, and a table of it."""
    outcome = Outcome(
        metrics={"miou": 0.43215, "accuracy": 0.8765},
        per_class={"road": 0.6, "a class with quite a long name": None},
        confusion=[[9, 1], [2, 8]],
        curves={"loss": [(1, 2.0), (2, 1.0)]},
        pictures=[(LONG, np.full((40, 120, 3), 90, np.uint8))],
    )
    weights = {"kind": "file", "arch": "resnet18", "stem": "no_pool", "spec": LONG, "sha256": "a" * 64}
    weights |= {"matched": 100, "total": 100, "method": "densecl"}
    runs = [Run(seed=0, seconds=3.0, weights=weights, outcome=outcome)]
    result = make_result(
        task="segment",
        protocol="seg-probe",
        headline="miou",
        parameters={"steps": 3},
        data={"test": {"root": f"/{LONG}", "images": 4}},
        runs=runs,
    )
    write_result(result, folder / "result.json")
    written = json.loads((folder / "result.json").read_text())
    (folder / "result.html").write_text(result_page(result, runs), encoding="utf-8")
    (folder / "table.html").write_text(table_page(gather([folder / "result.json"])), encoding="utf-8")
    shown = [f"{100 * value:.2f}" for value in written["mean"].values()]
    return {"result": shown, "table": [f"{100 * written['mean']['miou']:.1f}"]}


def _compare(folder):
    """A comparison of two long-named initialisations with random weights, two fractions and three seeds."""
    names = {"random": "random", f"ours_{LONG[:50].replace('/', '_')}": f"/{LONG}", "theirs": "theirs.pth"}
    settings = CompareSettings(initialisations=names, fractions=(0.05, 1.0), protocol="seg-probe")
    test = {"root": f"/{LONG}", "name": "val", "images": 12, "files": "1"}
    data = {"train": {}, "test": test, "unlabelled": {**test, "name": "streets"}}
    generator, measured, values = np.random.default_rng(0), {}, {}
    for cell in cells(settings):
        gain = 0.04 * list(names).index(cell.initialisation) * (cell.fraction < 1)
        value = 0.4 + 0.2 * cell.fraction + gain + 0.002 * generator.random()
        weights = {"kind": "file", "arch": "resnet18", "stem": "no_pool", "spec": LONG, "sha256": "a" * 64}
        runs = [Run(seed=cell.seed, seconds=75.0, weights=weights, outcome=Outcome(metrics={"miou": value}))]
        parameters = {"steps": 400, "batch_size": 16}
        asked = {"task": "segment", "protocol": "seg-probe", "headline": "miou", "data": data}
        result = make_result(**asked, parameters=parameters, runs=runs)
        result["comparison"] = {"peak_memory_gib": 1.25, "resumed": False}
        measured[cell] = Measured(cell, folder / "cells" / "a.json", result)
        values.setdefault((cell.initialisation, cell.fraction), {})[cell.seed] = value
    found = Comparison(
        settings=settings,
        measured=measured,
        left=0,
        findings=findings(settings, values, lambda *_: (-0.01, 0.03)),
        images={0.05: 18, 1.0: 367},
        available=367,
        absent={(0.05, 1): ["bicyclist"]},
        command=f"hapicl compare segment random /{LONG} --images /{LONG} --labels /{LONG}",
    )
    write_reports(found, folder)
    record = json.loads((folder / "compare.json").read_text())
    means = [f"{100 * np.mean(list(each.values())):.1f}" for each in values.values()]
    shifts = [f"{100 * each['difference']['mean']:+.2f}" for each in record["comparisons"][:1]]
    return [*means, *shifts, "0.12", "1:15", "1.25", "bicyclist", *record["verdicts"]]


def _neighbours(folder):
    """The images of the masks by vectors of which two are nearly the same, and one that cannot be read."""
    store = Folder(folder / "images")
    values = np.eye(6, 4, dtype=np.float32) + 0.01
    values[5] = values[0] + 0.001
    weights = {"spec": LONG, "sha256": "a" * 64, "arch": "resnet18", "stem": "no_pool", "method": "densecl"}
    about = {"weights": weights, "gives": "mean", "shape": [4], "image_size": 64, "resize": 73}
    about |= {"images": str(folder / "images"), "versions": {"hapicl": "1", "torch": "2"}, "inputs": {}}
    about["unreadable"] = {f"{LONG}/broken.png": "empty file"}
    shown = show_neighbours(FeatureFile(store.paths(), values, about), store, k=3, threshold=0.98)
    (folder / "neighbours.html").write_text(shown.html, encoding="utf-8")
    (_, _, cosine) = near_duplicates(torch.from_numpy(values), 0.98).pairs[0]
    return [f"{cosine:.4f}", "empty file"]


def opened(browser, path, *, width, dark=False):
    """The page in a window of this width, and what the browser complained of."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", offline=True
    )
    shown, complaints = context.new_page(), []
    shown.on("console", lambda message: complaints.append(message.text))
    shown.on("pageerror", lambda error: complaints.append(str(error)))
    shown.goto(path.as_uri())
    return shown, complaints


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_its_window_and_says_what_its_files_say(browser, pages, name, width):
    folder, numbers = pages
    shown, complaints = opened(browser, folder / f"{name}.html", width=width)
    wider = shown.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    text = shown.inner_text("body")
    shown.context.close()
    assert complaints == []
    assert wider <= 0
    for number in numbers[name]:
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d])", text), number


def test_a_chart_is_readable_in_the_dark(browser, pages):
    """Charts were white pictures."""
    folder, _ = pages
    colours = {}
    for dark in (False, True):
        shown, _ = opened(browser, folder / "report.html", width=1400, dark=dark)
        style = "element => getComputedStyle(element)"
        ink = shown.eval_on_selector(".chart text", f"{style}.fill")
        paper = shown.evaluate("getComputedStyle(document.body).backgroundColor")
        line = shown.eval_on_selector_all(
            ".chart path", "paths => paths.map(path => getComputedStyle(path).stroke)"
        )
        shown.context.close()
        colours[dark] = (ink, paper, line)
        brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
        assert (brightness[0] > brightness[1]) == dark
        assert abs(brightness[0] - brightness[1]) > 400
    assert colours[False][2] != colours[True][2]


def test_a_picture_becomes_as_large_as_the_window_on_a_click(browser, pages):
    folder, _ = pages
    shown, _ = opened(browser, folder / "masks.html", width=400)
    picture = shown.locator(".cards img").first
    before = picture.bounding_box()
    picture.click()
    large = picture.bounding_box()
    picture.click()
    after = picture.bounding_box()
    shown.context.close()
    assert before["width"] < 400
    assert (large["width"], large["height"]) == (400, 900)
    assert after["width"] == before["width"]


def test_cards_stand_below_each_other_in_a_narrow_window(browser, pages):
    folder, _ = pages
    across = {}
    for width in (400, 1400):
        shown, _ = opened(browser, folder / "masks.html", width=width)
        boxes = [card.bounding_box() for card in shown.locator(".cards").first.locator("figure").all()]
        shown.context.close()
        across[width] = len({round(box["x"]) for box in boxes})
    assert across[400] == 1
    assert across[1400] > 1
