"""Protocol minimax and its student: constants, colours and rates as in the script's description, written out here."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from stripes import stripes, write_set

from d3hr_ray.config import DataConfig
from d3hr_ray.evaluation import augment as aug
from d3hr_ray.evaluation import training
from d3hr_ray.evaluation.comparison import open_comparison
from d3hr_ray.evaluation.protocols import Setting, sees_whole
from d3hr_ray.evaluation.recipes import Recipe
from d3hr_ray.evaluation.training import rate, train_student
from d3hr_ray.models.classifiers import Score
from d3hr_ray.models.resnet_ap import ResNetAP
from d3hr_ray.models.students import build_student

WOOF = Setting("resnetap10", 224, 10, 10)


def made(**changes):
    return Recipe().make("minimax", replace(WOOF, **changes))


def test_the_constants_are_the_scripts():
    plain = made()
    assert (plain.labels, plain.optimizer, plain.lr, plain.weight_decay) == ("hard", "sgd", 0.01, 5e-4)
    assert (plain.batch_size, plain.decay, plain.input, plain.warmup, plain.best_after) == (64, "all", "imagenet", 0, 0)
    how = plain.augment
    assert (how.crop_scale, how.flip, how.jitter, how.lighting) == ((0.5, 1.0), True, 0.4, 0.1)
    assert (how.mix, how.mix_alpha, how.mix_probability) == ("cutmix", 1.0, 1.0)
    lengths = {1: 3000, 2: 2000, 10: 2000, 11: 1500, 50: 1500, 100: 1000, 200: 1000, 500: 500, 501: 300}
    assert {ipc: made(ipc=ipc).epochs for ipc in lengths} == lengths
    assert [made(ipc=n, classes=100).epochs for n in (1, 10, 50, 200, 500)] == [2000, 1300, 1000, 600, 300]
    assert [made(ipc=n).evaluate_every for n in (1, 10, 50)] == [30, 20, 15]
    many = made(classes=1000)
    assert (many.lr, many.weight_decay, many.batch_size, many.epochs) == (0.1, 1e-4, 128, 2000)


@pytest.mark.parametrize("epochs", [2000, 1300, 300])
def test_the_rate_falls_at_whole_epochs_as_torchs_multi_step_does(epochs):
    protocol = replace(made(), epochs=epochs)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], protocol.lr)
    at = [2 * epochs // 3, 5 * epochs // 6]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, at, gamma=0.2)
    for epoch in range(epochs):
        assert protocol.lr * rate(protocol, epoch / epochs, 1.0) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


def jittered(image: np.ndarray, order: list[int], ways: list[float]) -> np.ndarray:
    """One image (3, S, S) in [0, 1]: 0 moves it from black, 1 from its mean grey, 2 from its greys."""
    for kind in order:
        grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
        goal = {0: np.zeros_like(image), 1: np.full_like(image, grey.mean()), 2: np.stack([grey] * 3)}[kind]
        image = image + ways[kind] * (goal - image)
    return image


def test_jitter_moves_each_image_in_an_order_of_its_own():
    images = torch.rand(7, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = aug.jitter(images, 0.4, np.random.default_rng(3)).numpy()
    draw = np.random.default_rng(3)
    orders, ways = np.argsort(draw.random((7, 3)), axis=1), draw.uniform(-0.4, 0.4, (7, 3))
    assert len({tuple(order) for order in orders}) > 1
    for image, order, way, got in zip(images.numpy(), orders, ways, found, strict=True):
        wanted = jittered((image + 1) / 2, order.tolist(), way.tolist())
        np.testing.assert_allclose((got + 1) / 2, wanted, atol=1e-5)


class Only:
    """Draws by which one kind alone moves, by a share of 0.3."""

    def __init__(self, kind: int) -> None:
        self.ways = np.where(np.arange(3) == kind, 0.3, 0.0)

    def random(self, shape):
        return np.broadcast_to(np.arange(3.0), shape)

    def uniform(self, low, high, shape):
        return np.broadcast_to(self.ways, shape)


def test_jitter_of_one_kind_leaves_what_it_should():
    """Brightness keeps black and hues, contrast the mean grey, saturation every grey."""
    image = np.random.default_rng(0).random((3, 4, 4)).astype(np.float32)
    given, luma = torch.from_numpy(image)[None] * 2 - 1, np.array(aug.LUMA)
    bright, contrast, vivid = ((aug.jitter(given, 0.4, Only(kind))[0].numpy() + 1) / 2 for kind in range(3))
    np.testing.assert_allclose(bright, 0.7 * image, atol=1e-6)
    grey = np.tensordot(luma, image, 1)
    np.testing.assert_allclose(np.tensordot(luma, contrast, 1).mean(), grey.mean(), atol=1e-6)
    np.testing.assert_allclose(np.tensordot(luma, contrast, 1), 0.7 * grey + 0.3 * grey.mean(), atol=1e-6)
    np.testing.assert_allclose(np.tensordot(luma, vivid, 1), grey, atol=1e-6)
    assert np.abs(vivid - image).max() > 0.01 and np.ptp(contrast) < np.ptp(image)


def test_lighting_adds_one_colour_per_image_with_imagenets_covariance():
    count = 20_000
    added = aug.lighten(torch.zeros(count, 3, 2, 2), 0.1, np.random.default_rng(0)).numpy() / 2
    assert np.ptp(added, axis=(2, 3)).max() == 0
    colours, variances = np.array(aug.COLOURS), np.array(aug.VARIANCES)
    np.testing.assert_allclose(colours.T @ colours, np.eye(3), atol=1e-3)  # they are directions
    wanted = colours @ np.diag((0.1 * variances) ** 2) @ colours.T
    np.testing.assert_allclose(np.cov(added[:, :, 0, 0].T), wanted, rtol=0.05, atol=2e-6)


@pytest.mark.parametrize(("side", "kernel", "grid"), [(224, 7, 7), (128, 3, 8), (64, 3, 8), (32, 3, 4)])
def test_resnetap_pools_as_the_size_asks(side, kernel, grid):
    net, seen = ResNetAP(10, side, 10), list[int]()
    net.body.register_forward_hook(lambda module, args, out: seen.append(out.shape[-1]))
    assert net(torch.zeros(2, 3, side, side)).shape == (2, 10)
    stem = net.stem[0]
    assert isinstance(stem, torch.nn.Conv2d) and stem.kernel_size == (kernel, kernel)
    assert seen == [grid]
    assert all(m.stride in (1, (1, 1)) for m in net.modules() if isinstance(m, torch.nn.Conv2d))


def test_resnetap10_is_of_the_published_size():
    """Kernels, two numbers a norm and channel, and the head, added up by hand."""
    kernels = 7 * 7 * 3 * 64 + 2 * 9 * 64 * 64
    norms = 3 * 64
    for width, out in ((64, 128), (128, 256), (256, 512)):
        kernels += 9 * width * out + 9 * out * out + width * out
        norms += 3 * out
    net = build_student("resnetap10", 10, 224, 0)
    assert sum(p.numel() for p in net.parameters()) == kernels + 2 * norms + 512 * 10 + 10
    conv = net.get_submodule("net.body.3.second.0")
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)


def test_it_trains_and_takes_the_best_of_its_looks(monkeypatch):
    images, short = stripes(6), replace(made(image_size=16), epochs=6, evaluate_every=2)
    found = iter([0.4, 0.9, 0.5])
    monkeypatch.setattr(training, "evaluate", lambda net, test, device: Score(next(found), 1.0, np.ones(3), np.eye(3)))
    outcome = train_student("resnetap10", short, images, images, None, 0)
    assert (outcome.best_epoch, outcome.best_top1, outcome.last.top1) == (4, 0.9, 0.5)


def test_a_norm_of_single_pixels_is_refused():
    """It is 0 for every image; batch norm's is over images."""
    with pytest.raises(ValueError, match="--arch resnetap10 leaves nothing of 12 pixels; it takes 16 and more"):
        build_student("resnetap10", 3, 12, 0)
    with pytest.raises(ValueError, match="it takes 8 and more"):
        build_student("resnetap10-bn", 3, 4, 0)
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert build_student("resnetap10", 3, 16, 0)(images).std(0).max() > 1e-2


def test_whole_images_are_tested_on_and_never_beside_protocols_that_cut_their_centre(ray_session, tmp_path):
    with pytest.raises(ValueError, match="--protocol minimax sees more of test images"):
        sees_whole(("minimax", "hard"))
    assert sees_whole(("minimax",)) and not sees_whole(("hard", "dc"))
    draw = np.random.default_rng(0)
    large = replace(stripes(1), pixels=draw.integers(0, 256, (3, 128, 128, 3), np.uint8))
    path, real = write_set(tmp_path / "set", large), DataConfig(f"{write_set(tmp_path / 'real', large)}/train")
    plain, whole = (
        open_comparison((path,), real, 64, ["convnet-d3"], None, Recipe(), names) for names in (("hard",), ("minimax",))
    )
    assert plain.test.digest != whole.test.digest
