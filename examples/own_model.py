"""A model of one's own, from training it anywhere to a number with its doubts.

    python examples/own_model.py
    harness run --model examples/own_model.py:build --weights own.safetensors \
        --normalisation mnist --attack adaptive --budget-scale 0.01 --epsilon 0.1 --limit 50
"""

import torch
from safetensors.torch import save_file
from torch import nn

from harness.api.evaluate import evaluate, load_images

MEAN, STD = 0.1307, 0.3081


def build() -> nn.Module:
    """Return the untrained model for `--model FILE:build`; may also take `shape` and `classes`."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 196, 10)
    )


def main() -> None:
    torch.manual_seed(0)
    model = build()
    images, labels = load_images("digits", "train")
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(6):
        for rows in torch.randperm(len(images)).split(64):
            optimiser.zero_grad()
            logits = model((images[rows] - MEAN) / STD)  # normalised outside of the model
            nn.functional.cross_entropy(logits, labels[rows]).backward()
            optimiser.step()
    save_file(model.state_dict(), "own.safetensors")

    test_images, test_labels = load_images("digits", "test", 50)
    result = evaluate(
        model,
        test_images,
        test_labels,
        attack="adaptive",
        epsilon=0.1,
        normalisation=f"{MEAN}/{STD}",
        scale=0.01,  # a hundredth of the published budget: a look, not a measurement
        quiet=True,
    )
    print(result)
    result.save("own.csv")


if __name__ == "__main__":
    main()
