import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as reference

from hapicl.common.imagenet import MEAN, STD
from hapicl.common.randomness import counter_generator
from hapicl.data.geometry import ViewGeometry
from hapicl.data.images.inputs import RGB, Inputs
from hapicl.data.loading import photometric
from hapicl.data.loading.batch import (
    NO_PHOTOMETRIC,
    Batch,
    JigsawPolicy,
    Needs,
    PhotometricPolicy,
    ViewPolicy,
)
from hapicl.data.loading.photometric import ORDERS, augment, augment_images, draw_row, without_colour
from hapicl.data.positions import stack

EVERYTHING = PhotometricPolicy(jitter=0.8, hue=0.2, grey=0.2, blur=0.5, solarize=0.2, pirl_extra=0.66)


def _rows(policy, count, seed=0):
    rows = [draw_row(counter_generator(seed, 0, index, 0, "photometric"), policy) for index in range(count)]
    return torch.from_numpy(np.stack(rows))


def _images(count, side=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.rand(count, 3, side // 4, side // 4, generator=generator)
    smooth = torch.nn.functional.interpolate(smooth, size=(side, side), mode="bilinear")
    noise = torch.rand(count, 3, side, side, generator=generator)
    images = (255 * (0.8 * smooth + 0.2 * noise)).to(torch.uint8)
    images[0] = 77  # one flat grey image: no spread, no hue
    return images


def _one_by_one(image, row):
    """The same with torchvision's functional operations, one image at a time."""
    row = row.tolist()
    value = image.float() / 255
    if row[photometric.JITTER]:
        operations = (
            reference.adjust_brightness,
            reference.adjust_contrast,
            reference.adjust_saturation,
            reference.adjust_hue,
        )
        for number in ORDERS[int(row[photometric.ORDER])]:
            value = operations[number](value, row[photometric.BRIGHTNESS + number])
    if row[photometric.EXTRA]:
        value = reference.posterize(value, int(row[photometric.BITS]))
        value = reference.adjust_sharpness(value, row[photometric.SHARPNESS])
        value = torch.where(value >= row[photometric.THRESHOLD], 1 - value, value)  # torchvision's stops at 1
        value = reference.autocontrast(value)
    if row[photometric.GREYED]:
        value = reference.rgb_to_grayscale(value, num_output_channels=3)
    sigma = row[photometric.SIGMA]
    if sigma > 0:
        taps = 2 * photometric.blur_radius(sigma, min(value.shape[-2:])) + 1
        value = reference.gaussian_blur(value, [taps, taps], [sigma, sigma])
    if row[photometric.SOLARIZE]:
        value = reference.solarize(value, 0.5)
    return reference.normalize(value, list(MEAN), list(STD))


def _unstable(image, row):
    """Whether rounding decides: posterize and solarize jump, so a pixel may fall to either side."""
    return bool(row[photometric.EXTRA]) or bool(row[photometric.SOLARIZE])


def test_agrees_with_torchvision_per_sample():
    images, rows = _images(96), _rows(EVERYTHING, 96)
    ours = augment_images(images, rows)
    for image, row, got in zip(images, rows, ours, strict=True):
        difference = (got - _one_by_one(image, row)).abs() * 0.225
        if _unstable(image, row):
            # all but the few pixels that lie within rounding of a threshold
            assert (difference > 1e-3).float().mean() < 0.01
        else:
            assert difference.max() < 1e-3


def test_each_extra_alone_agrees_with_torchvision():
    images = _images(8).float() / 255
    ones = torch.ones(8, 1, 1, 1)
    pairs = [
        (photometric._posterize(images.clone(), 5 * ones), reference.posterize(images, 5)),
        (photometric._sharpness(images.clone(), 1.7 * ones), reference.adjust_sharpness(images, 1.7)),
        (photometric._solarize(images.clone(), 0.4 * ones), reference.solarize(images, 0.4)),
        (photometric._autocontrast(images.clone()), reference.autocontrast(images)),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_pirls_extra_was_one_of_four_where_vissl_applies_all():
    rows = _rows(PhotometricPolicy(jitter=0, grey=0, blur=0, pirl_extra=1.0), 2000).numpy()
    bits, sharpness, threshold = (
        rows[:, column] for column in (photometric.BITS, photometric.SHARPNESS, photometric.THRESHOLD)
    )
    assert (np.bincount(bits.astype(int), minlength=9)[4:] > 300).all()  # 400 expected of 4 to 8 each
    assert 0.1 <= sharpness.min() < 0.12
    assert 1.88 < sharpness.max() <= 1.9
    assert (threshold.min() * 255, threshold.max() * 255) == (pytest.approx(0), pytest.approx(256))
    images = _images(4)
    given = torch.from_numpy(rows[:4].copy())
    expected = torch.stack([_one_by_one(image, row) for image, row in zip(images, given, strict=True)])
    near = (augment_images(images, given) - expected).abs() < 1e-3
    assert near.float().mean() > 0.99
    assert not torch.allclose(expected, _plain(images), atol=0.1)


def _plain(images):
    return reference.normalize(images.float() / 255, list(MEAN), list(STD))


@pytest.mark.parametrize("side", [32, 64, 128, 224])
def test_blur_had_the_same_pixels_at_every_size_of_view(side):
    """Published widths are for 224 pixels; at 64 they took what a first view of BYOL (always blurred) had."""
    policy = PhotometricPolicy(blur=1.0)
    whole = draw_row(counter_generator(0, 0, 5, 0, "photometric"), policy)
    scaled = draw_row(counter_generator(0, 0, 5, 0, "photometric"), policy, side)
    assert scaled[photometric.SIGMA] == pytest.approx(whole[photometric.SIGMA] * side / 224)
    others = np.arange(photometric.COLUMNS) != photometric.SIGMA
    np.testing.assert_array_equal(scaled[others], whole[others])


def test_result_of_one_image_does_not_depend_on_its_batch():
    images, rows = _images(16), _rows(EVERYTHING, 16)
    together = augment_images(images, rows)
    for index in range(16):
        alone = augment_images(images[index : index + 1], rows[index : index + 1])
        torch.testing.assert_close(alone[0], together[index], atol=1e-5, rtol=0)


def test_keeps_channels_last_and_float32_under_autocast():
    images = _images(4).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = augment_images(images, _rows(EVERYTHING, 4))
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, augment_images(images, _rows(EVERYTHING, 4)))
    assert augment_images(images.contiguous(), _rows(EVERYTHING, 4)).is_contiguous()


def test_nothing_drawn_only_normalises():
    images = _images(3)
    expected = reference.normalize(images.float() / 255, list(MEAN), list(STD))
    torch.testing.assert_close(augment_images(images, _rows(NO_PHOTOMETRIC, 3)), expected)


def test_parameters_have_the_policy_s_statistics():
    rows = _rows(EVERYTHING, 4000).numpy()
    assert abs(rows[:, photometric.JITTER].mean() - 0.8) < 0.03
    assert abs(rows[:, photometric.GREYED].mean() - 0.2) < 0.03
    assert abs((rows[:, photometric.SIGMA] > 0).mean() - 0.5) < 0.03
    assert abs(rows[:, photometric.SOLARIZE].mean() - 0.2) < 0.03
    assert abs((rows[:, photometric.EXTRA] > 0).mean() - 0.66) < 0.03
    orders = np.bincount(rows[:, photometric.ORDER].astype(int), minlength=24)
    assert orders.min() > 100  # 167 expected of each
    for column, low, high in ((photometric.BRIGHTNESS, 0.6, 1.4), (photometric.HUE, -0.2, 0.2)):
        assert low <= rows[:, column].min() < low + 0.02 * (high - low)
        assert high >= rows[:, column].max() > high - 0.02 * (high - low)
    sigma = rows[:, photometric.SIGMA]
    assert sigma[sigma > 0].min() >= 0.1
    assert sigma.max() <= 2.0


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(0, 10**6))
def test_a_row_depends_on_the_counter_alone(seed, sample):
    first = draw_row(counter_generator(seed, 3, sample, 1, "photometric"), EVERYTHING)
    again = draw_row(counter_generator(seed, 3, sample, 1, "photometric"), EVERYTHING)
    np.testing.assert_array_equal(first, again)
    # a policy with a switch off draws the same numbers for the rest
    calm = draw_row(counter_generator(seed, 3, sample, 1, "photometric"), EVERYTHING.replace(blur=0.0))
    assert calm[photometric.HUE] == first[photometric.HUE]
    assert calm[photometric.SOLARIZE] == first[photometric.SOLARIZE]


def test_strong_strengths_never_draw_a_negative_factor():
    rows = _rows(PhotometricPolicy(jitter=1.0, brightness=1.5, contrast=1.5, saturation=1.5), 200)
    assert (rows[:, photometric.BRIGHTNESS : photometric.HUE] >= 0).all()


def test_augment_handles_patches_and_leaves_the_rest():
    images, rows = _images(8), _rows(EVERYTHING, 8)
    where = stack([ViewGeometry(0, 0, 9, 9, False)] * 2)
    batch = Batch(
        index=torch.arange(2),
        image_size=torch.full((2, 2), 9),
        views=(images[:2],),
        geometry=(where,),
        photometric=(rows[:2],),
        patches=images.unflatten(0, (2, 4)),
        patch_photometric=rows.unflatten(0, (2, 4)),
    )
    done = augment(batch)
    torch.testing.assert_close(done.patches.flatten(0, 1), augment_images(images, rows), atol=1e-5, rtol=0)
    torch.testing.assert_close(done.views[0], augment_images(images[:2], rows[:2]), atol=1e-5, rtol=0)
    assert done.index is batch.index
    assert batch.views[0].dtype == torch.uint8
    assert torch.equal(batch.views[0], _images(8)[:2])


def test_images_shared_among_threads_come_out_the_same():
    images, rows = _images(7), _rows(EVERYTHING, 7)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = augment_images(images, rows)
        torch.set_num_threads(3)
        torch.testing.assert_close(augment_images(images, rows), alone, atol=0, rtol=0)
    finally:
        torch.set_num_threads(threads)


def test_images_that_are_not_square_and_tiny_ones():
    for height, width in ((5, 9), (3, 2), (1, 1)):
        images = torch.randint(0, 256, (24, 3, height, width), dtype=torch.uint8)
        rows = _rows(PhotometricPolicy(blur=1.0, pirl_extra=0.0), 24)
        expected = torch.stack([_one_by_one(image, row) for image, row in zip(images, rows, strict=True)])
        assert (augment_images(images, rows) - expected).abs().max() < 5e-3


@pytest.mark.gpu
def test_gpu_agrees_with_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    images, rows = _images(32), _rows(EVERYTHING, 32)
    steady = torch.tensor([not _unstable(image, row) for image, row in zip(images, rows, strict=True)])
    on_gpu = augment_images(images.cuda(), rows).cpu()
    torch.testing.assert_close(on_gpu[steady], augment_images(images, rows)[steady], atol=2e-3, rtol=0)


def test_other_channels_keep_what_assumes_no_colour():
    plain = PhotometricPolicy(jitter=1, saturation=0, hue=0, grey=0, blur=0.5, solarize=0.5, pirl_extra=0.5)
    rows = _rows(plain, 12)
    inputs = Inputs(in_channels=5, mean=(0.5,) * 5, std=(0.25,) * 5)
    images = torch.cat([_images(12), _images(12, seed=1)[:, :2]], 1)
    found = augment_images(images, rows, inputs)
    assert found.shape == images.shape
    # contrast is about the mean of all channels; everything else is of each channel alone
    rows[:, photometric.CONTRAST] = 1
    alone = Inputs(in_channels=1, mean=(0.5,), std=(0.25,))
    together = augment_images(images, rows, inputs)
    for channel in range(5):
        one = augment_images(images[:, channel : channel + 1], rows, alone)
        torch.testing.assert_close(together[:, channel : channel + 1], one)
    assert not torch.equal(found, together)


def test_what_assumes_rgb_is_switched_off_by_name():
    needs = Needs(views=(ViewPolicy(), ViewPolicy(photometric=NO_PHOTOMETRIC)), jigsaw=JigsawPolicy())
    assert without_colour(needs, RGB) == (needs, [])
    other, names = without_colour(needs, Inputs(in_channels=4))
    assert names == ["grey", "hue", "saturation"]
    for policy in (*other.views, other.jigsaw):
        assert (policy.photometric.saturation, policy.photometric.hue, policy.photometric.grey) == (0, 0, 0)
    assert other.views[0].photometric.brightness == needs.views[0].photometric.brightness
    unseen = Needs(views=(ViewPolicy(photometric=NO_PHOTOMETRIC),))
    assert without_colour(unseen, Inputs(in_channels=4))[1] == []
