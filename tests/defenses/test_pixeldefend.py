import itertools
import math

import pytest
import torch

from harness.defenses.pixeldefend import PixelDefend, purify
from harness.models.pixelcnn import Decoder, GatedPixelCNN, to_levels
from harness.random import Draws, Role
from harness.types import HarnessError

torch.set_num_threads(1)


def network(channels: int, seed: int = 0, **sizes: int) -> GatedPixelCNN:
    """Tiny, in double precision, with random weights large enough to matter."""
    torch.manual_seed(seed)
    made = GatedPixelCNN(channels, **{"features": 4, "layers": 2, "mixtures": 3, **sizes}).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2.0)
    return made.eval()


def pictures(count: int, channels: int, height: int = 6, width: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator) / 255.0


def naive(model: GatedPixelCNN, images: torch.Tensor, radius: int) -> torch.Tensor:
    """Algorithm 1 of Song et al. (2018) with a whole forward pass for every pixel."""
    levels = to_levels(images)
    count, channels, height, width = images.shape
    for row, column in itertools.product(range(height), range(width)):
        parameters = model(levels / 255.0)[:, :, row, column]
        for n, channel in itertools.product(range(count), range(channels)):
            value = int(levels[n, channel, row, column])
            allowed = torch.arange(max(0, value - radius), min(255, value + radius) + 1)
            known = levels[n, :channel, row, column]
            likely = model.log_probability(parameters[n], channel, known, allowed)
            levels[n, channel, row, column] = allowed[likely.argmax()]
    return levels.to(images.dtype) / 255.0


@pytest.mark.parametrize("channels", [1, 3])
def test_the_output_at_a_pixel_depends_on_the_pixels_before_it_alone(channels: int) -> None:
    model = network(channels)
    base = pictures(1, channels)
    height, width = base.shape[2:]
    before = model(base)
    for row, column in itertools.product(range(height), range(width)):
        changed = base.clone()
        changed[:, :, row, column] = 1.0 - changed[:, :, row, column]
        moved = ((model(changed) - before).abs().amax(dim=1)[0] > 0).flatten()
        here = row * width + column
        assert not moved[: here + 1].any()
        if here + 1 < height * width and column + 1 < width:
            assert bool(moved[here + 1])  # it does see its left neighbour
        if row + 1 < height:
            assert bool(moved[here + width])  # and the pixel above


def test_there_is_no_blind_spot() -> None:
    """Within the receptive field every earlier pixel counts, above right included."""
    model = network(1, layers=3)
    leaf = pictures(1, 1, 6, 6).double()
    centre = model(leaf)[0, :, 4, 2]
    for row, column in ((4, 1), (3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (3, 5), (2, 5), (1, 5)):
        changed = leaf.clone()
        changed[0, 0, row, column] = 1.0 - changed[0, 0, row, column]
        assert not torch.equal(model(changed)[0, :, 4, 2], centre)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_channel_is_a_distribution(channels: int) -> None:
    model = network(channels)
    parameters = 20.0 * torch.randn(7, sum(model.sizes), dtype=torch.float64)
    known = torch.randint(0, 256, (7, channels))
    levels = torch.arange(256).expand(7, 256)
    for channel in range(channels):
        found = model.log_probability(parameters, channel, known[:, :channel], levels)
        assert torch.allclose(found.exp().sum(-1), torch.ones(7, dtype=torch.float64))


def test_channels_depend_on_earlier_channels_of_their_pixel_alone() -> None:
    model = network(3)
    parameters = torch.randn(1, sum(model.sizes), dtype=torch.float64)
    levels = torch.arange(256).expand(1, 256)
    known = torch.tensor([[10, 200]])
    third = model.log_probability(parameters, 2, known, levels)
    for place in (0, 1):
        other = known.clone()
        other[0, place] = 100
        assert not torch.allclose(third, model.log_probability(parameters, 2, other, levels))


def test_one_logistic_against_its_formula() -> None:
    model = network(1, mixtures=1)
    mean, log_scale = 0.1, -3.0
    parameters = torch.tensor([[0.3, mean, log_scale]], dtype=torch.float64)
    known = torch.zeros(1, 0, dtype=torch.int64)
    found = model.log_probability(parameters, 0, known, torch.tensor([[0, 130, 255]])).exp()[0]

    def below(x: float) -> float:
        return 1 / (1 + math.exp(-(x - mean) / math.exp(log_scale)))

    half = 1 / 255
    middle = 2 * 130 / 255 - 1
    expected = [below(-1 + half), below(middle + half) - below(middle - half), 1 - below(1 - half)]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


def test_far_tails_stay_ordered() -> None:
    """Where every probability underflows, the likeliest is still the nearest to the mean."""
    model = network(1, mixtures=1).float()
    parameters = torch.tensor([[0.0, 0.9, -7.0]]).expand(2, 3)
    known = torch.zeros(2, 0, dtype=torch.int64)
    levels = torch.stack((torch.arange(20, 53), torch.arange(240, 224, -1).repeat(3)[:33]))
    assert model.likeliest(parameters, 0, known, levels).tolist() == [52, 240]


def test_bits_per_dimension_is_the_negative_log_likelihood() -> None:
    model = network(3)
    images = pictures(2, 3, 3, 2)
    parameters = model(images)
    levels = to_levels(images)
    total = torch.zeros(2, dtype=torch.float64)
    for row, column, channel in itertools.product(range(3), range(2), range(3)):
        pixel = levels[:, :, row, column]
        at = pixel[:, channel : channel + 1]
        here = parameters[:, :, row, column]
        total += model.log_probability(here, channel, pixel[:, :channel], at)[:, 0]
    expected = -total / (18 * math.log(2))
    assert torch.allclose(model.bits_per_dimension(images), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_decoder_gives_what_the_network_gives(channels: int) -> None:
    model = network(channels)
    images = pictures(3, channels)
    expected = model(images)
    decoder = Decoder(model, 3, *images.shape[2:])
    for row, column in itertools.product(range(images.shape[2]), range(images.shape[3])):
        found = decoder.parameters(row, column)
        assert torch.allclose(found, expected[:, :, row, column], atol=1e-10)
        decoder.fix(row, column, to_levels(images)[:, :, row, column])


@pytest.mark.parametrize(("channels", "radius"), [(1, 16), (3, 16), (1, 76), (3, 255), (1, 0)])
def test_purification_equals_the_naive_one(channels: int, radius: int) -> None:
    model = network(channels)
    images = pictures(3, channels)
    images[0, 0, 0] = 0.0
    images[1, 0, 0] = 1.0
    assert torch.equal(purify(model, images, radius), naive(model, images, radius))


def test_purification_raises_the_likelihood_inside_the_ball() -> None:
    model = network(1)
    images = pictures(4, 1)
    defense = PixelDefend(purify_epsilon=16 / 255)
    clean = purify(model, images, defense.radius)
    assert (clean - images).abs().max() <= 16 / 255 + 1e-6
    assert bool((model.bits_per_dimension(clean) < model.bits_per_dimension(images)).all())


def test_images_do_not_depend_on_their_company() -> None:
    model = network(3)
    images = pictures(5, 3)
    together = purify(model, images, 16)
    assert torch.equal(together, purify(model, images, 16, chunk=2))
    assert torch.equal(together[3:4], purify(model, images[3:4], 16))


def test_training_lowers_the_loss_and_the_defense_is_deterministic() -> None:
    from sklearn.datasets import load_digits

    images = torch.tensor(load_digits().images[:200] / 16, dtype=torch.float32).unsqueeze(1)
    defense = PixelDefend(purify_epsilon=0.3, features=8, layers=2, mixtures=3)
    torch.manual_seed(0)
    module = defense.auxiliary_module((1, 8, 8))
    assert module is not None
    optimiser = torch.optim.Adam(module.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = defense.auxiliary_loss(module, images)
        assert loss.shape == (200,)
        losses.append(loss.mean().item())
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
    assert losses[-1] < losses[0] - 0.8
    draws = Draws(0, torch.arange(10), Role.SCORE)
    once = defense.transform(images[:10], draws.opaque(), module)
    again = defense.transform(images[:10], draws.at(draw=5).opaque(), module)
    assert torch.equal(once, again) and once.shape == (10, 1, 8, 8)
    assert torch.equal(defense.training_transform(images, draws.opaque(), module), images)
    assert defense.transform(images[:0], draws[:0].opaque(), module).shape == (0, 1, 8, 8)
    assert (once - images[:10]).abs().max() <= 0.3 + 0.5 / 255
    assert not any(parameter.grad is None for parameter in module.parameters())


def test_the_radius_is_whole() -> None:
    assert PixelDefend(purify_epsilon=float(torch.tensor(16 / 255))).radius == 16
    assert PixelDefend(purify_epsilon=0.3).radius == 76
    assert PixelDefend(purify_epsilon=0.0).radius == 0


def test_wrong_use_is_named() -> None:
    with pytest.raises(HarnessError, match="purify_epsilon is 16"):
        PixelDefend(purify_epsilon=16)
    with pytest.raises(HarnessError, match="layers is 0"):
        PixelDefend(layers=0)
    with pytest.raises(HarnessError, match="given nothing"):
        draws = Draws(0, torch.arange(1), Role.SCORE).opaque()
        PixelDefend().transform(pictures(1, 1), draws)
