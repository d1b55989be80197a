from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from harness.datasets import data
from harness.datasets.digits import enlarge

torch.set_num_threads(1)


def test_split_is_fixed_and_stratified() -> None:
    train, test = data.load("digits", "train"), data.load("digits", "test")
    assert (len(train), len(test)) == (1438, 359)
    assert sorted(train.ids.tolist() + test.ids.tolist()) == list(range(1797))
    share = test.labels.bincount() / (train.labels.bincount() + test.labels.bincount())
    assert float(share.min()) > 0.195 and float(share.max()) < 0.205
    # Changing what stands here changes every stored record of digits.
    assert test.digest == "ee78fb9ae204aa41d6b25676e6ee1b013d048474026ee1d9b411ef9b646e0a51"
    assert train.digest == "e226c75c0156573e6f7c1f70b67409c57a1fec9daae52d884957117ca9c128d5"


def test_labels_belong_to_their_images() -> None:
    test = data.load("digits", "test")
    bunch = load_digits()
    assert test.labels.tolist() == bunch.target[test.ids.numpy()].tolist()
    expected = enlarge(torch.from_numpy(bunch.images).long()[test.ids])
    assert torch.equal(test.images, expected)


def test_resizing_is_torchs_bilinear() -> None:
    images = torch.from_numpy(load_digits().images[:200])
    expected = torch.nn.functional.interpolate(
        images[:, None] / 16 * 255, size=(28, 28), mode="bilinear", align_corners=False
    )
    difference = enlarge(images.long()).double() - expected
    assert float(difference.abs().max()) <= 0.5 + 1e-6


def test_every_prefix_is_mixed() -> None:
    for split in ("train", "test"):
        assert len(set(data.load("digits", split).first(40).labels.tolist())) == 10  # type: ignore[arg-type]
