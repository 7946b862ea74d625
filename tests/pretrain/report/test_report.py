"""The report: differences, curves, crops with masks, features; self-contained; says what is not there."""

import json
import re

import numpy as np
import pytest
import torch
from joint import TinyBackbone

from hapicl.common.errors import UserError
from hapicl.pretrain.report.curves import constants, headline_charts, other_charts
from hapicl.pretrain.report.features import components
from hapicl.pretrain.report.page import run_names, write_report
from hapicl.pretrain.report.views import view_pictures


def made_up_run(folder, **settings):
    folder.mkdir(parents=True)
    chosen = {"method": "hapicl_m", "arch": "resnet18", "seed": 0, "images": None, "masks": "m.h5"} | settings
    config = {
        "settings": chosen,
        "data": {"images": 12},
        "total_steps": 30,
        "environment": {"device": "cpu"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    lines = [
        {
            "step": step,
            "loss": 5 - step / 10,
            "loss/pixel": 0.7,
            "chance/pixel": 0.69,
            "schedule/lr": 0.1,
            "seconds": 1.0,
        }
        for step in (10, 20, 30)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 30, "knn/accuracy": 0.25}\n')
    (folder / "train.log").write_text(
        "2026-01-01T00:00:00+00:00  warning at step 3: collapse: <b>one point</b>\n"
    )
    views = np.full((2, 2, 32, 32, 3), 200, np.uint8)
    occupancy = np.zeros((2, 2, 4, 4), np.float32)
    occupancy[:, :, :2] = 1.0
    np.savez(folder / "views.npz", views=views, occupancy=occupancy)
    return str(folder)


def test_two_runs_side_by_side(tmp_path):
    runs = [made_up_run(tmp_path / "first"), made_up_run(tmp_path / "second", seed=7)]
    write_report(runs, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    for part in ("first", "second", "settings that differ", ">seed<", ">7<", "foreground 50%, 50%", "0.25"):
        assert part in text, part
    assert ">arch<" not in text  # the same in both
    assert "collapse: &lt;b&gt;one point&lt;/b&gt;" in text  # escaped
    assert "has no last.pt yet" in text
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert text.count("data:image") == 2 * 2  # two samples of each run
    titles = re.findall(r'aria-label="([^"]*) against the step"', text)
    assert titles == ["hapicl_m: loss: pixel", "Online kNN accuracy", "Learning rate", "loss"]
    assert "first, chance" in text  # in the same chart as the term
    assert "30 / 30" in text
    assert "0:03" in text  # the duration


def test_one_run_lists_all_its_settings(tmp_path):
    write_report([made_up_run(tmp_path / "only")], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "settings that differ" not in text
    assert "resnet18" in text


def test_a_damaged_file_of_a_run_is_named(tmp_path, capsys):
    run = made_up_run(tmp_path / "run")
    with open(tmp_path / "run" / "metrics.jsonl", "a") as lines:
        lines.write('5\n{"step": 40, "lo')
    write_report([run], tmp_path / "report.html")
    assert capsys.readouterr().err.count("a line is cut and left out") == 2
    (tmp_path / "run" / "views.npz").write_text("no pictures")
    with pytest.raises(UserError, match=r"views\.npz is damaged"):
        write_report([run], tmp_path / "report.html")
    for content in ("[]", "{}"):
        (tmp_path / "run" / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"is not the config\.json of a run"):
            write_report([run], tmp_path / "report.html")


def test_a_run_with_the_key_names_of_an_earlier_version_is_refused_in_one_sentence(tmp_path):
    run = made_up_run(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text(
        '{"step": 10, "instance": 4.0, "samples_per_second": 9.0}\n'
    )
    with pytest.raises(UserError, match=r"metrics\.jsonl was written by an earlier version") as refused:
        write_report([run], tmp_path / "report.html")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "report.html").exists()


def test_runs_of_one_folder_name_are_told_apart(tmp_path):
    assert run_names([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    with pytest.raises(UserError, match="given twice"):
        run_names([tmp_path / "a", tmp_path / "b" / ".." / "a"])


LINES = [
    {
        "step": step,
        "loss": 9.0 - step,
        "loss/instance": 8.0 - step,
        "chance/instance": 7.0,
        "zebra": 2.0 * step,
    }
    | {"similarity/positive": 0.5 + step / 10, "similarity/negative": 0.1, "schedule/lr": 1.0, "seconds": 3.0}
    for step in (1, 2)
]


def config(method="simclr", **settings):
    return {"settings": {"method": method} | settings}


def titles(charts):
    return [chart.alt.removesuffix(" against the step") for chart in charts]


def test_the_charts_to_look_at_first_come_first_and_the_rest_is_not_lost():
    metrics = {"run": LINES}
    first = headline_charts(metrics, {"run": config()})
    assert titles(first) == ["simclr: terms of the loss", "Similarity of pairs", "Learning rate"]
    assert "chance" in first[0].svg
    assert all(chart.caption for chart in first)
    assert titles(other_charts(metrics)) == ["loss", "zebra"]
    assert constants({"run": [{**line, "embedding/std": 1.0} for line in LINES]}) == {
        "similarity/negative": "0.1",
        "embedding/std": "1",
        "schedule/lr": "1",
    }


def test_losses_of_two_methods_and_knn_of_two_sets_shared_a_chart():
    knn = [{"step": step, "knn/accuracy": 0.1 + step / 100} for step in (0, 10)]
    metrics = {"a": LINES + knn, "b": LINES + knn, "c": LINES + knn}
    sets = {"knn_train": "one/train", "knn_val": "one/val", "knn_images": 2000}
    configs = {
        "a": config("simclr", **sets),
        "b": config("densecl", **sets),
        "c": config("densecl", **sets | {"knn_val": "two/val"}),
    }
    found = headline_charts(metrics, configs)
    assert titles(found)[:2] == ["simclr: terms of the loss", "densecl: loss: instance"]
    online = [chart for chart in found if "kNN" in chart.alt]
    assert ["one/val" in chart.caption for chart in online] == [True, False]
    assert ["two/val" in chart.caption for chart in online] == [False, True]
    assert "random weights" in online[0].svg
    for chart, runs in ((found[1], "bc"), (online[0], "ab")):
        named = {run for run in "abc" if re.search(rf">{run}(, [a-z ]+)?: ", chart.svg)}
        assert named == set(runs), chart.alt


def test_a_schedule_was_drawn_as_its_moving_average():
    """Which lags behind it, and never came to its end."""
    lines = [
        {"step": step, "schedule/lr": 50.0 - step, "similarity/positive": step % 3} for step in range(50)
    ]
    charts = {
        chart.alt.split(" ")[0]: chart.svg for chart in headline_charts({"run": lines}, {"run": config()})
    }
    faint = {name for name, svg in charts.items() if "stroke-opacity: 0.3" in svg}
    assert faint == {"Similarity"}  # under its average


def test_crops_were_too_small_to_see_and_named_a_mask_that_was_none(tmp_path):
    run = made_up_run(tmp_path / "run")
    write_report([run], tmp_path / "report.html")
    assert "with the mask's outline" in (tmp_path / "report.html").read_text().replace("&#39;", "'")
    (picture, _) = view_pictures(tmp_path / "run")
    assert picture.image.shape == (160, 320, 3)
    with np.load(tmp_path / "run" / "views.npz") as kept:
        views = kept["views"]
    np.savez(tmp_path / "run" / "views.npz", views=views)
    write_report([run], tmp_path / "report.html")
    assert "the mask" not in (tmp_path / "report.html").read_text()


def test_components_colour_two_kinds_of_pixels_differently():
    torch.manual_seed(0)
    pixels = torch.zeros(2, 3, 64, 64)
    pixels[:, :, :, 32:] = 2.0
    images, colours = components(TinyBackbone().eval(), pixels)
    assert images.shape == colours.shape == (2, 64, 64, 3)
    left, right = colours[0, 32, 8].astype(int), colours[0, 32, 56].astype(int)
    assert np.abs(left - right).max() > 100
    assert np.array_equal(colours[0], colours[1])
