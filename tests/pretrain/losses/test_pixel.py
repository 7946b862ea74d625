from __future__ import annotations

import math

import pytest
import torch

from hapicl.pretrain.losses import cell_labels, pixel_contrast, pixel_terms
from hapicl.pretrain.losses import pixel as pixel_module

FORMS = ("image", "image_released", "batch_released", "anchor")


def draw(batch=5, dim=7, cells=9, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    u1, u2 = torch.randn(2, batch, dim, cells, generator=generator, dtype=dtype)
    m1, m2 = torch.rand(2, batch, cells, generator=generator) < 0.5
    return u1, u2, m1, m2


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def is_positive(a, b, background):
    return (a == 1 and b == 1) or (background and a == 0 and b == 0)


def loop_sums(u1, u2, m1, m2, background, temperature=0.2):
    """S+ and S- of every image, pair by pair."""
    sums = []
    for b in range(len(u1)):
        attract = repel = 0.0
        for i in range(u1.shape[2]):
            for j in range(u2.shape[2]):
                a, c = int(m1[b, i]), int(m2[b, j])
                if a < 0 or c < 0:
                    continue
                value = math.exp(cosine(u1[b, :, i], u2[b, :, j]) / temperature)
                if is_positive(a, c, background):
                    attract += value
                else:
                    repel += value
        sums.append((attract, repel))
    return sums


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize(("form", "file"), [("image_released", "image"), ("batch_released", "batch")])
def test_agrees_with_the_authors_numbers(golden_arrays, form, file, background):
    data = golden_arrays(f"hapicl_pixel_{file}_{'fgbg' if background else 'fg'}")
    u1, u2 = data["u1"].requires_grad_(), data["u2"].requires_grad_()
    loss = pixel_contrast(
        u1,
        u2,
        data["m1"],
        data["m2"],
        temperature=float(data["temperature"]),
        form=form,
        background_positives=background,
    )
    loss.backward()
    torch.testing.assert_close(loss.detach(), data["loss"], rtol=0, atol=1e-9)
    torch.testing.assert_close(u1.grad, data["grad_u1"], rtol=0, atol=1e-9)
    torch.testing.assert_close(u2.grad, data["grad_u2"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("form", ["image", "image_released", "batch_released"])
def test_image_forms_agree_with_a_loop(form, background):
    u1, u2, m1, m2 = draw()
    sums = loop_sums(u1, u2, m1, m2, background)
    if form == "image":
        terms = [-math.log(a / (a + r)) for a, r in sums if a > 0 and r > 0]
    elif form == "image_released":
        terms = [-math.log((a + 1) / (a + r + 2)) for a, r in sums]
    else:
        total = sum(a + r for a, r in sums)
        terms = [-math.log((a + 1e-5) / total) for a, _ in sums]
    loss = pixel_contrast(u1, u2, m1, m2, form=form, background_positives=background)
    assert loss.item() == pytest.approx(sum(terms) / len(terms), abs=1e-12)


@pytest.mark.parametrize("negatives", ["image", "batch"])
@pytest.mark.parametrize("background", [True, False])
def test_anchor_form_agrees_with_a_loop(background, negatives):
    u1, u2, m1, m2 = draw(batch=3, cells=4)
    m1[0, 0] = True
    m2[0] = True  # an image whose second view is all foreground: only its second direction has negatives
    m1 = m1.to(torch.int8)
    m1[1, 2] = -1
    terms = []
    for b in range(3):
        cells = []
        for x, y, mx, my in ((u1, u2, m1, m2), (u2, u1, m2, m1)):
            for i in range(4):
                if mx[b, i] < 0:
                    continue
                known = [j for j in range(4) if my[b, j] >= 0]
                attract = [j for j in known if is_positive(int(mx[b, i]), int(my[b, j]), background)]
                others = [(b, j) for j in known if j not in attract]
                if negatives == "batch":
                    others += [(c, j) for c in range(3) if c != b for j in range(4) if my[c, j] >= 0]
                if not attract or not others:
                    continue
                repel = sum(math.exp(cosine(x[b, :, i], y[c, :, j]) / 0.2) for c, j in others)
                scores = [math.exp(cosine(x[b, :, i], y[b, :, j]) / 0.2) for j in attract]
                cells.append(sum(-math.log(s / (s + repel)) for s in scores) / len(scores))
        if cells:
            terms.append(sum(cells) / len(cells))
    loss = pixel_contrast(u1, u2, m1, m2, form="anchor", background_positives=background, negatives=negatives)
    assert loss.item() == pytest.approx(sum(terms) / len(terms), abs=1e-12)


@pytest.mark.parametrize("chunk", [2**24, 50])
def test_batch_negatives_agree_with_a_loop(monkeypatch, chunk):
    monkeypatch.setattr(pixel_module, "CHUNK_LOGITS", chunk)
    u1, u2, m1, m2 = draw(batch=4, cells=4)
    valid = torch.tensor([True, True, False, True])
    m2 = m2.to(torch.int8)
    m2[0, 1] = -1
    m1[3], m2[3] = True, 1  # its own pairs are all positive: only other images repel
    terms = []
    for b, (attract, repel) in enumerate(loop_sums(u1, u2, m1, m2, True)):
        if not valid[b]:
            continue
        for c in range(4):
            if c != b and valid[c]:
                for i in range(4):
                    for j in range(4):
                        if m2[c, j] >= 0:
                            repel += math.exp(cosine(u1[b, :, i], u2[c, :, j]) / 0.2)
        if attract > 0:
            terms.append(-math.log(attract / (attract + repel)))
    loss = pixel_contrast(u1, u2, m1, m2, negatives="batch", valid=valid)
    assert loss.item() == pytest.approx(sum(terms) / len(terms), abs=1e-12)


def test_chunked_batch_negatives_have_the_same_gradient(monkeypatch):
    u1, u2, m1, m2 = draw()
    gradients = []
    for chunk in (2**24, 100):
        monkeypatch.setattr(pixel_module, "CHUNK_LOGITS", chunk)
        a, b = u1.clone().requires_grad_(), u2.clone().requires_grad_()
        pixel_contrast(a, b, m1, m2, negatives="batch").backward()
        gradients.append((a.grad, b.grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("form", FORMS)
def test_is_symmetric_in_the_views(form):
    u1, u2, m1, m2 = draw()
    there = pixel_contrast(u1, u2, m1, m2, form=form)
    back = pixel_contrast(u2, u1, m2, m1, form=form)
    torch.testing.assert_close(there, back, rtol=0, atol=1e-12)


def test_equal_embeddings_give_the_closed_form():
    u = torch.ones(1, 4, 6, dtype=torch.float64)
    m = torch.tensor([[1, 1, 0, 0, 0, 0]])
    # 4 + 16 positive pairs of 36
    assert pixel_contrast(u, u, m, m).item() == pytest.approx(math.log(36 / 20))
    assert pixel_contrast(u, u, m, m, background_positives=False).item() == pytest.approx(math.log(36 / 4))
    expected = (2 * math.log(1 + 4) + 4 * math.log(1 + 2)) / 6
    assert pixel_contrast(u, u, m, m, form="anchor").item() == pytest.approx(expected)


def test_opposite_directions_are_the_trivial_optimum():
    u = torch.ones(1, 1, 4, dtype=torch.float64)
    u[:, :, 2:] = -1
    m = torch.tensor([[1, 1, 0, 0]])
    assert pixel_contrast(u, u, m, m, temperature=0.05).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("form", "negatives"), [*((form, "image") for form in FORMS), ("image", "batch"), ("anchor", "batch")]
)
@pytest.mark.parametrize(("first", "second"), [(1, 1), (0, 0), (1, 0), (0, 1), (-1, -1), (-1, 1)], ids=str)
def test_one_sided_masks_leave_no_junk_gradient(form, first, second, negatives):
    for dtype in (torch.float32, torch.float64):
        u1, u2, _, _ = draw(batch=2, dtype=dtype)
        u1.requires_grad_()
        u2.requires_grad_()
        m1 = torch.full((2, 9), first, dtype=torch.int8)
        m2 = torch.full((2, 9), second, dtype=torch.int8)
        loss = pixel_contrast(u1, u2, m1, m2, form=form, negatives=negatives)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(u1.grad).all()
        assert torch.isfinite(u2.grad).all()
        if negatives == "image" and form in {"image", "anchor"}:
            assert loss.item() == 0
            assert not u1.grad.any()
            assert not u2.grad.any()


def test_dropped_images_change_nothing_for_the_others():
    u1, u2, m1, m2 = draw(batch=4)
    m1[2], m2[2] = True, True
    for form in ("image", "anchor"):
        terms, counted = pixel_terms(u1, u2, m1, m2, form=form)
        assert counted.tolist() == [True, True, False, True]
        kept = [0, 1, 3]
        alone = pixel_contrast(u1[kept], u2[kept], m1[kept], m2[kept], form=form)
        torch.testing.assert_close(pixel_contrast(u1, u2, m1, m2, form=form), alone, rtol=0, atol=1e-12)
        assert terms[2] == 0


@pytest.mark.parametrize("form", FORMS)
def test_images_without_a_mask_are_left_out(form):
    u1, u2, m1, m2 = draw(batch=4)
    valid = torch.tensor([True, False, True, True])
    alone = pixel_contrast(u1[valid], u2[valid], m1[valid], m2[valid], form=form)
    if form == "image_released":  # counts all
        assert pixel_terms(u1, u2, m1, m2, form=form, valid=valid)[1].tolist() == valid.tolist()
    torch.testing.assert_close(
        pixel_contrast(u1, u2, m1, m2, form=form, valid=valid), alone, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_inputs_are_computed_in_float32(form):
    u1, u2, m1, m2 = draw(dtype=torch.float32)
    low = pixel_contrast(u1.bfloat16(), u2.bfloat16(), m1, m2, form=form)
    high = pixel_contrast(u1.bfloat16().float(), u2.bfloat16().float(), m1, m2, form=form)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, high, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = pixel_contrast(u1.bfloat16(), u2.bfloat16(), m1, m2, form=form)
    torch.testing.assert_close(inside, high, rtol=0, atol=0)


def test_gradient_agrees_with_finite_differences():
    u1, u2, m1, m2 = draw(batch=2, dim=3, cells=4)
    u1.requires_grad_()
    u2.requires_grad_()
    for form in FORMS:
        assert torch.autograd.gradcheck(
            lambda a, b, form=form: pixel_contrast(a, b, m1, m2, form=form), (u1, u2)
        )


def test_labels_by_area_any_and_ignore_band():
    occupancy = torch.tensor([[[0.0, 0.1], [0.5, 1.0]]])
    assert cell_labels(occupancy).tolist() == [[0, 0, 1, 1]]
    assert cell_labels(occupancy, threshold=0.6).tolist() == [[0, 0, 0, 1]]
    assert cell_labels(occupancy, rule="any").tolist() == [[0, 1, 1, 1]]
    assert cell_labels(occupancy, ignore=(0.05, 0.6)).tolist() == [[0, -1, -1, 1]]


def test_the_any_rule_dilates_one_cell_to_nine_when_it_is_not_aligned():
    # an object of one cell's size, off the grid by half a cell each way, seen from a mask smeared by a resize
    occupancy = torch.zeros(1, 5, 5)
    occupancy[0, 1:4, 1:4] = 0.05
    occupancy[0, 2, 2] = 0.9
    assert cell_labels(occupancy, rule="any").sum() == 9
    assert cell_labels(occupancy).sum() == 1


def test_wrong_shapes_and_options_are_refused():
    u1, u2, m1, m2 = draw()
    with pytest.raises(ValueError, match=r"do not fit: give u \(B, D, P\)"):
        pixel_contrast(u1, u2, m1[:, :4], m2)
    with pytest.raises(ValueError, match="unknown form 'pixel'"):
        pixel_contrast(u1, u2, m1, m2, form="pixel")
    with pytest.raises(ValueError, match="batch negatives need image or anchor"):
        pixel_contrast(u1, u2, m1, m2, form="image_released", negatives="batch")
