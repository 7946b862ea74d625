"""The report: differences, curves, crops with masks, features; self-contained; says what is not there."""

import json
import re

import numpy as np
import pytest
import torch
from joint import TinyBackbone

from hapicl.common.errors import UserError
from hapicl.pretrain.report.curves import curve_pictures
from hapicl.pretrain.report.features import components
from hapicl.pretrain.report.page import run_names, write_report


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
    assert text.count("data:image") == 4 + 2 * 2  # loss, kNN, pixel, lr; two samples of each run


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


def test_curves_come_in_order_and_skip_clocks():
    metrics = {
        "run": [
            {"step": 1, "schedule/lr": 1.0, "loss": 2.0, "seconds": 3.0, "zebra": 1.0, "chance/zebra": 2.0}
        ]
    }
    names = [picture.alt.split(" ")[0] for picture in curve_pictures(metrics)]
    assert names == ["loss", "zebra", "schedule/lr"]


def test_components_colour_two_kinds_of_pixels_differently():
    torch.manual_seed(0)
    pixels = torch.zeros(2, 3, 64, 64)
    pixels[:, :, :, 32:] = 2.0
    images, colours = components(TinyBackbone().eval(), pixels)
    assert images.shape == colours.shape == (2, 64, 64, 3)
    left, right = colours[0, 32, 8].astype(int), colours[0, 32, 56].astype(int)
    assert np.abs(left - right).max() > 100
    assert np.array_equal(colours[0], colours[1])
