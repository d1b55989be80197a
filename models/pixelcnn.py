"""A small gated PixelCNN: the density model that PixelDefend purifies with. Not a classifier.

The network is the gated PixelCNN of van den Oord et al. (2016, "Conditional image generation with
PixelCNN decoders", section 2): a vertical stack sees the rows above, a horizontal one the pixels to
the left, gated by tanh times sigmoid, so that there is no blind spot. Its output is the mixture of
discretised logistics of PixelCNN++ (Salimans et al. 2017, section 2.1), in which the channels of
one pixel depend on each other linearly.

`Decoder` evaluates the same network pixel by pixel and computes nothing twice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FIRST_ROWS = 3
FIRST_SIDE = 3
LEVELS = 256
LOG_SCALES = (-7.0, 7.0)
WIDTH = 2.0 / (LEVELS - 1)
BEYOND = 1e6
FAINT = 1e-30


def to_levels(images: Tensor) -> Tensor:
    """Round values in [0, 1] to the nearest of the 256 levels, int64."""
    return (images * (LEVELS - 1)).round().long()


def scaled(levels: Tensor, dtype: torch.dtype) -> Tensor:
    """Scale levels 0 ... 255 to [-1, 1]."""
    return levels.to(dtype) * (2.0 / (LEVELS - 1)) - 1.0


def edges(levels: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return (..., 1, V) begin and end of each level on [-1, 1], and 1 where it is an inner one."""
    middle = scaled(levels, dtype).unsqueeze(-2)
    bottom = (levels == 0).to(dtype).unsqueeze(-2)
    top = (levels == LEVELS - 1).to(dtype).unsqueeze(-2)
    low = middle - WIDTH / 2 - BEYOND * bottom
    high = middle + WIDTH / 2 + BEYOND * top
    return low, high, 1.0 - bottom - top


def gate(both: Tensor) -> Tensor:
    """Gate (N, 2F, ...) to (N, F, ...): tanh of the one half times sigmoid of the other."""
    signal, control = both.chunk(2, dim=1)
    return torch.tanh(signal) * torch.sigmoid(control)


class GatedLayer(nn.Module):
    """One gated layer of both stacks. The state of a row or pixel is already strictly causal."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.vertical = nn.Conv2d(features, 2 * features, (2, 3))
        self.horizontal = nn.Conv2d(features, 2 * features, (1, 2))
        self.link = nn.Conv2d(2 * features, 2 * features, 1)
        self.output = nn.Conv2d(features, features, 1)

    def forward(self, above: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.vertical(F.pad(above, (1, 1, 1, 0)))
        pixels = self.horizontal(F.pad(left, (1, 0))) + self.link(rows)
        return gate(rows), left + self.output(gate(pixels))


class GatedPixelCNN(nn.Module):
    """A map from (N, C, H, W) in [0, 1] to the mixture's parameters at every pixel, (N, K, H, W).

    Those at pixel i depend on the pixels before i in raster order alone.

    Args:
        channels: C. features: width of both stacks. layers: gated layers after the first; the
        receptive field grows by one row and column with each. mixtures: logistics in each mixture.
    """

    def __init__(
        self, channels: int, *, features: int = 24, layers: int = 4, mixtures: int = 5
    ) -> None:
        super().__init__()
        self.channels = channels
        self.features = features
        self.mixtures = mixtures
        couplings = channels * (channels - 1) // 2
        self.sizes = [mixtures] + [mixtures * n for n in (channels, channels, couplings)]
        width = 2 * FIRST_SIDE + 1
        self.vertical = nn.Conv2d(channels + 1, 2 * features, (FIRST_ROWS, width))
        self.horizontal = nn.Conv2d(channels + 1, 2 * features, (1, FIRST_SIDE))
        self.link = nn.Conv2d(2 * features, 2 * features, 1)
        self.output = nn.Conv2d(features, features, 1)
        self.layers = nn.ModuleList(GatedLayer(features) for _ in range(layers))
        self.hidden = nn.Conv2d(features, 2 * features, 1)
        self.parameters_at = nn.Conv2d(2 * features, sum(self.sizes), 1)

    def forward(self, images: Tensor) -> Tensor:
        x = scaled(to_levels(images), self.hidden.weight.dtype)
        x = torch.cat((x, torch.ones_like(x[:, :1])), dim=1)  # marks what is inside
        rows = self.vertical(F.pad(x, (FIRST_SIDE, FIRST_SIDE, FIRST_ROWS, 0))[:, :, :-1])
        pixels = self.horizontal(F.pad(x, (FIRST_SIDE, 0))[..., :-1]) + self.link(rows)
        above, left = gate(rows), self.output(gate(pixels))
        for layer in self.layers:
            above, left = layer(above, left)
        found: Tensor = self.parameters_at(F.relu(self.hidden(F.relu(left))))
        return found

    def mixture(
        self, parameters: Tensor, channel: int, known: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-weights, means and sharpnesses (inverse scales), each (..., M, 1), of one channel.

        Args:
            parameters: (..., K), the network's output at the pixel.
            channel: which.
            known: (..., channel) int64, the levels of the channels before it.
        """
        logits, means, log_scales, couplings = torch.split(parameters, self.sizes, dim=-1)
        here = slice(channel * self.mixtures, (channel + 1) * self.mixtures)
        mean = means[..., here]
        first = channel * (channel - 1) // 2
        for before in range(channel):
            at = (first + before) * self.mixtures
            coupling = torch.tanh(couplings[..., at : at + self.mixtures])
            mean = mean + coupling * scaled(known[..., before, None], mean.dtype)
        sharpness = torch.exp(-log_scales[..., here].clamp(*LOG_SCALES))
        weights = F.log_softmax(logits, dim=-1)
        return weights.unsqueeze(-1), mean.unsqueeze(-1), sharpness.unsqueeze(-1)

    def log_probability(
        self, parameters: Tensor, channel: int, known: Tensor, levels: Tensor
    ) -> Tensor:
        """Return (..., V) log-probability, in nats, of the channel at each of some levels (..., V) int64.

        With the sigmoid s, a level's mass is s(u) - s(l) = s(u) s(-l) (1 - exp(l - u)): no
        cancellation. The mass beyond the range belongs to the outermost levels. The rest as in
        `mixture`.
        """
        weights, mean, sharpness = self.mixture(parameters, channel, known)
        low, high, inside = edges(levels, mean.dtype)
        each = F.logsigmoid(sharpness * (high - mean)) + F.logsigmoid(sharpness * (mean - low))
        each = each + inside * torch.log(-torch.expm1(-WIDTH * sharpness))
        return torch.logsumexp(each + weights, dim=-2)

    def likeliest(self, parameters: Tensor, channel: int, known: Tensor, levels: Tensor) -> Tensor:
        """Return (N,) int64: the likeliest of the levels (N, V), the first where several are.

        Works with probabilities, several times as fast as with their logarithms, and turns to these
        where all the probabilities are too small. Arguments as in `log_probability`.
        """
        weights, mean, sharpness = self.mixture(parameters, channel, known)
        low, high, inside = edges(levels, mean.dtype)
        each = torch.sigmoid(sharpness * (high - mean)) * torch.sigmoid(sharpness * (mean - low))
        each *= (1.0 - inside) - inside * torch.expm1(-WIDTH * sharpness)
        mass, best = (each * weights.exp()).sum(dim=-2).max(dim=-1)
        faint = (mass < FAINT).nonzero()[:, 0]
        if len(faint):
            exact = self.log_probability(parameters[faint], channel, known[faint], levels[faint])
            best[faint] = exact.argmax(dim=-1)
        return levels.gather(1, best[:, None])[:, 0]

    def bits_per_dimension(self, images: Tensor) -> Tensor:
        """Return (N,) negative log-likelihood of images (N, C, H, W) over C * H * W * log 2."""
        levels = to_levels(images).movedim(1, -1)
        parameters = self(images).movedim(1, -1)
        total = torch.zeros(len(images), dtype=parameters.dtype, device=images.device)
        for channel in range(self.channels):
            at = levels[..., channel : channel + 1]
            found = self.log_probability(parameters, channel, levels[..., :channel], at)
            total = total + found.flatten(1).sum(dim=1)
        return -total / (math.log(2.0) * images[0].numel())


class Decoder:
    """The network evaluated pixel by pixel in raster order, for images that are decided on the way.

    The vertical stack is computed row by row, from the row before; the horizontal one pixel by
    pixel, from the pixel before: each activation once, where a forward pass for each pixel computes
    all H * W times. Ask for `parameters(row, column)` in raster order, and `fix` each pixel before
    the next.
    """

    def __init__(self, network: GatedPixelCNN, count: int, height: int, width: int) -> None:
        self.network = network
        weight = network.hidden.weight
        self.dtype = weight.dtype
        shape = (count, network.channels + 1, height + FIRST_ROWS, width + 2 * FIRST_SIDE)
        self.pixels = weight.new_zeros(shape)
        self.pixels[:, -1, FIRST_ROWS:, FIRST_SIDE : FIRST_SIDE + width] = 1.0
        state = weight.new_zeros(count, network.features, 1, width)
        self.above = [state for _ in network.layers]  # the last row's input to each layer
        self.links: list[Tensor] = []
        self.left: list[Tensor] = []
        stages = [network.horizontal, *(layer.horizontal for layer in self._layers())]
        self.weights = [stage.weight[:, :, 0].flatten(1).T for stage in stages]
        self.biases = [stage.bias for stage in stages if stage.bias is not None]

    def _layers(self) -> list[GatedLayer]:
        return [layer for layer in self.network.layers if isinstance(layer, GatedLayer)]

    def _start(self, row: int) -> None:
        """Return the vertical stack's contribution to each stage of this row, each (W, N, 2F)."""
        network = self.network
        rows = network.vertical(self.pixels[:, :, row : row + FIRST_ROWS])
        self.links = [network.link(rows)]
        above = gate(rows)
        for position, layer in enumerate(self._layers()):
            both = torch.cat((self.above[position], above), dim=2)
            self.above[position] = above
            rows = layer.vertical(F.pad(both, (1, 1)))
            self.links.append(layer.link(rows))
            above = gate(rows)
        self.links = [
            (link[:, :, 0] + bias[:, None]).permute(2, 0, 1).contiguous()
            for link, bias in zip(self.links, self.biases, strict=True)
        ]
        empty = self.pixels.new_zeros(len(self.pixels), network.features)
        self.left = [empty for _ in network.layers]

    def parameters(self, row: int, column: int) -> Tensor:
        """Return (N, K): what the network gives at this pixel."""
        if column == 0:
            self._start(row)
        network = self.network
        seen = self.pixels[:, :, FIRST_ROWS + row, column : column + FIRST_SIDE].flatten(1)
        both = torch.addmm(self.links[0][column], seen, self.weights[0])
        left = _pointwise(network.output, gate(both))
        for position, layer in enumerate(self._layers()):
            pair = torch.stack((self.left[position], left), dim=2).flatten(1)
            self.left[position] = left
            both = torch.addmm(self.links[position + 1][column], pair, self.weights[position + 1])
            left = left + _pointwise(layer.output, gate(both))
        hidden = F.relu(_pointwise(network.hidden, F.relu(left)))
        return _pointwise(network.parameters_at, hidden)

    def fix(self, row: int, column: int, levels: Tensor) -> None:
        """Set a pixel: levels (N, C) int64."""
        self.pixels[:, :-1, FIRST_ROWS + row, FIRST_SIDE + column] = scaled(levels, self.dtype)


def _pointwise(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a 1 x 1 convolution at one pixel, x (N, F)."""
    return F.linear(x, convolution.weight[:, :, 0, 0], convolution.bias)
