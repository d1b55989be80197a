"""Shapes, sizes and readouts of the built-in models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.models.normalise import Normalise
from harness.registry import models
from harness.targets.features import last_linear, penultimate
from harness.types import HarnessError

torch.set_num_threads(1)
SMALL = ["resnet18", "wideresnet-10-1", "densenet121"]
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


def build(name: str, shape: tuple[int, int, int], classes: int, **parameters: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = models.get(name)(shape, classes, **parameters)
    return model


@pytest.mark.parametrize(
    ("name", "shape", "classes", "count"),
    [
        # kuangliu/pytorch-cifar and many papers: 11.17 million
        ("resnet18", (3, 32, 32), 10, 11_173_962),
        # Zagoruyko and Komodakis 2016, table 4: 36.5 million
        ("wideresnet-28-10", (3, 32, 32), 10, 36_479_194),
        # Zhang et al. 2019 (TRADES) and RobustBench: 46.16 million
        ("wideresnet-34-10", (3, 32, 32), 10, 46_160_474),
        # torchvision's model card
        ("densenet121", (3, 224, 224), 1000, 7_978_856),
    ],
)
def test_parameter_counts_are_those_of_the_literature(
    name: str, shape: tuple[int, int, int], classes: int, count: int
) -> None:
    with torch.device("meta"):
        model = models.get(name)(shape, classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (48, 32, 32), (3, 64, 64)])
def test_logits_and_gradients(name: str, shape: tuple[int, int, int], training: bool) -> None:
    if name == "densenet121" and shape[1] < 32:
        pytest.skip("densenet121 serves 32 x 32 and more")
    model = build(name, shape, 7).train(training)
    images = torch.rand(2, *shape, requires_grad=True)
    logits = model(images)
    assert logits.shape == (2, 7)
    (gradient,) = torch.autograd.grad(logits.square().sum(), images)
    assert bool(torch.isfinite(gradient).all()) and float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("name", ["resnet18", "wideresnet-10-1"])
def test_stem_keeps_the_resolution(name: str) -> None:
    model = build(name, (3, 32, 32), 10)
    sizes = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, output: sizes.append(output.shape[-1]))
    model(torch.rand(2, 3, 32, 32))
    assert sizes[0] == 32
    assert min(sizes) == (4 if name == "resnet18" else 8)


def test_wide_residual_block_follows_the_paper() -> None:
    """Against the formula, for a block that keeps and one that changes the shape."""
    from harness.models.wide_resnet import Block

    torch.manual_seed(0)
    relu, norm = torch.relu, nn.functional.batch_norm
    for stride, wide in ((1, 4), (2, 6)):
        block = Block(4, wide, stride).eval()
        for module in (block.norm1, block.norm2):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
        images = torch.randn(3, 4, 8, 8)
        first = relu(norm(images, block.norm1.running_mean, block.norm1.running_var))
        second = nn.functional.conv2d(first, block.conv1.weight, stride=stride, padding=1)
        second = relu(norm(second, block.norm2.running_mean, block.norm2.running_var))
        second = nn.functional.conv2d(second, block.conv2.weight, padding=1)
        direct = images
        if stride == 2:
            direct = nn.functional.conv2d(first, block.shortcut.weight, stride=2)
        else:
            assert block.shortcut is None
        assert torch.allclose(block(images), direct + second, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_no_module_changes_what_a_hook_has_seen(name: str) -> None:
    model = build(name, (3, 32, 32), 10).eval()
    seen: list[tuple[str, Tensor, Tensor]] = []
    for path, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(
                lambda m, i, output, path=path: seen.append((path, output, output.clone()))
            )
    model(torch.rand(1, 3, 32, 32))
    assert len(seen) > 20
    assert [path for path, output, copy in seen if not torch.equal(output, copy)] == []


def test_resnet_computes_what_torchvision_computes() -> None:
    from torchvision.models import resnet18

    stock = resnet18(num_classes=10).eval()
    stock.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    stock.maxpool = nn.Identity()
    model = build("resnet18", (3, 32, 32), 10).eval()
    model.network.load_state_dict(stock.state_dict())
    images = torch.rand(2, 3, 32, 32)
    assert torch.allclose(model(images), stock(images), atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_backward_hooks_work(name: str) -> None:
    model = build(name, (3, 32, 32), 10)
    calls: list[str] = []
    for path, module in model.named_modules():
        if not list(module.children()):
            module.register_full_backward_hook(lambda m, i, o, path=path: calls.append(path))
    model(torch.rand(2, 3, 32, 32, requires_grad=True)).sum().backward()
    assert "network.output" in calls or "network.fc" in calls
    assert len(calls) > 20


@pytest.mark.parametrize("name", SMALL)
def test_penultimate_features_explain_the_logits(name: str) -> None:
    model = build(name, (3, 32, 32), 10).eval()
    images = torch.rand(3, 3, 32, 32, requires_grad=True)
    features = penultimate(model, images)
    assert features.shape[0] == 3 and features.ndim == 2
    assert torch.allclose(last_linear(model)(features), model(images), atol=1e-6)
    (gradient,) = torch.autograd.grad(features.sum(), images)
    assert float(gradient.abs().sum()) > 0
    assert not last_linear(model)._forward_pre_hooks


def test_penultimate_of_the_other_models_and_of_none() -> None:
    assert penultimate(build("lenet", (1, 28, 28), 10), torch.rand(2, 1, 28, 28)).shape == (2, 1024)
    with pytest.raises(HarnessError, match="no linear layer"):
        penultimate(nn.Conv2d(1, 1, 1), torch.rand(1, 1, 4, 4))
    layer = nn.Linear(4, 4)
    with pytest.raises(HarnessError, match="ran 2 times"):
        penultimate(nn.Sequential(layer, layer), torch.rand(1, 4))
    assert not layer._forward_pre_hooks


def test_features_keep_the_mode() -> None:
    model = build("wideresnet-10-1", (1, 28, 28), 10)
    for training in (True, False):
        penultimate(model.train(training), torch.rand(2, 1, 28, 28))
        assert all(module.training == training for module in model.modules())


def test_normalise() -> None:
    images = torch.rand(5, 3, 4, 4)
    expected = torch.stack([(images[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)
    assert torch.allclose(Normalise(MEAN, STD)(images), expected)


@pytest.mark.parametrize("name", SMALL)
def test_normalisation_is_a_buffer_of_the_model(name: str) -> None:
    plain = build(name, (3, 32, 32), 10).eval()
    model = build(name, (3, 32, 32), 10, mean=MEAN, std=STD).eval()
    own = set(model.state_dict()) - set(plain.state_dict())
    assert own == {"normalise.mean", "normalise.std"}
    assert not any("normalise" in key for key, _ in model.named_parameters())
    images = torch.rand(2, 3, 32, 32)
    assert torch.allclose(model(images), plain(Normalise(MEAN, STD)(images)), atol=1e-6)
    other = build(name, (3, 32, 32), 10, mean=(0.0,) * 3, std=(1.0,) * 3).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images), model(images))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"mean": MEAN}, "belong together"),
        ({"mean": MEAN[:1], "std": STD[:1]}, "1 values and std 1.*3 channels"),
        ({"mean": MEAN, "std": (0.2, 0.0, 0.2)}, "above 0"),
        ({"depth": 12}, "6n \\+ 4"),
        ({"depth": 4}, "6n \\+ 4"),
        ({"width": 0}, "width is 0"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(HarnessError, match=words):
        build("wideresnet-10-1", (3, 32, 32), 10, **parameters)


def test_densenet_refuses_small_images() -> None:
    with pytest.raises(HarnessError, match="28 x 28 are too small"):
        build("densenet121", (1, 28, 28), 10)


def test_width_and_depth_are_options() -> None:
    wide = build("wideresnet-34-10", (3, 32, 32), 10, depth=16, width=2)
    assert sum(parameter.numel() for parameter in wide.parameters()) == 691_674
    assert last_linear(wide).in_features == 128


@pytest.mark.parametrize("name", SMALL)
def test_one_seed_one_model(name: str) -> None:
    first, second = (build(name, (3, 32, 32), 10).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", SMALL)
def test_a_few_steps_lower_the_loss(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, (3, 32, 32), 4, mean=MEAN, std=STD)
    images, labels = torch.rand(4, 3, 32, 32), torch.arange(4)
    rate = 0.2 if name.startswith("wide") else 0.02
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses


def test_a_model_s_own_penultimate_features_are_taken() -> None:
    class Own(nn.Module):
        def penultimate(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :5]

    images = torch.rand(3, 1, 4, 4)
    assert torch.equal(penultimate(Own(), images), images.flatten(1)[:, :5])
