import math

import pytest
import torch
from torch import nn

from mmlocalattn.layers.attention_stem import AttentionStem


def stem_oracle(stem, image):
    """Equation 3 with the values of appendix A.1 in each 4x4 block, in plain loops."""
    heads, (channels, _) = stem.num_heads, stem.query.weight.shape
    head_dim = channels // heads
    height, width = image.shape[1:]
    output = torch.zeros(height, width, channels, dtype=image.dtype)

    def value(row, column):
        place = stem.mixture_rows[row % 4] + stem.mixture_columns[column % 4]
        scores = [float(place @ nu) for nu in stem.mixtures]
        total = sum(math.exp(score) for score in scores)
        matrix = sum(math.exp(s) / total * weight for s, weight in zip(scores, stem.values))
        return matrix @ image[:, row, column]

    for i in range(height):
        for j in range(width):
            keys = [
                (a, b)
                for a in range(i - i % 4, min(i - i % 4 + 4, height))
                for b in range(j - j % 4, min(j - j % 4 + 4, width))
            ]
            query = stem.query.weight @ image[:, i, j]
            for head in range(heads):
                part = slice(head * head_dim, (head + 1) * head_dim)
                logits = []
                for a, b in keys:
                    key = (stem.key.weight @ image[:, a, b])[part]
                    offset = torch.cat(
                        [
                            stem.row_embedding[head, a - i + 3],
                            stem.column_embedding[head, b - j + 3],
                        ]
                    )
                    logits.append(query[part] @ (key + offset))
                weights = torch.stack(logits).softmax(0)
                output[i, j, part] = sum(w * value(*k)[part] for w, k in zip(weights, keys))
    return output


def pool(x):
    """4x4 max-pooling of (H, W, C), of what there is."""
    rows = [row.amax(0) for row in x.split(4)]
    return torch.stack([torch.stack([c.amax(0) for c in row.split(4)]) for row in rows])


def randomize(norm):
    """Statistics and weights as after training."""
    for tensor in (norm.running_mean, norm.weight, norm.bias):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)


@pytest.mark.parametrize('num_mixtures', [1, 3])
@pytest.mark.parametrize('size', [(8, 12), (5, 7), (1, 1)])
@torch.no_grad()
def test_equals_the_definition(size, num_mixtures):
    stem = AttentionStem(3, 8, num_heads=2, num_mixtures=num_mixtures).double().eval()
    randomize(stem.norm)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = []
    for image in images:
        attention = stem_oracle(stem, image)
        normed = stem.norm(attention.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
        expected.append(pool(normed))
    torch.testing.assert_close(stem(images), torch.stack(expected))


def test_batch_statistics_are_those_of_the_pixels():
    stem = AttentionStem(3, 8, num_heads=2).double().train()
    stem.norm.momentum = 1.0
    image = torch.randn(1, 3, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        y, attention = stem(image), stem_oracle(stem, image[0]).flatten(0, 1)
    torch.testing.assert_close(stem.norm.running_mean, attention.mean(0))
    torch.testing.assert_close(stem.norm.running_var, attention.var(0))
    normed = (attention - attention.mean(0)) / (attention.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(y[0], pool(normed.view(5, 7, 8)))


def test_folding_changes_no_gradient():
    """A norm that is not BatchNorm by name is not folded."""

    class Fixed(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm = norm

        def forward(self, x):
            return self.norm(x)

    stem, image = AttentionStem(3, 8, num_heads=2).double().eval(), torch.randn(1, 3, 6, 8).double()
    randomize(stem.norm)
    parameters = list(stem.parameters())
    results = []
    for norm in (stem.norm, Fixed(stem.norm)):
        stem.norm = norm
        y = stem(image)
        results.append((y, *torch.autograd.grad((y**2).sum(), parameters)))
    torch.testing.assert_close(*results)


def test_every_parameter_learns():
    stem = AttentionStem(3, 16)
    y = stem(torch.randn(2, 3, 9, 14))
    (y * torch.randn_like(y)).sum().backward()
    assert y.shape == (2, 3, 4, 16)
    for name, parameter in stem.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_rejects_odd_heads():
    with pytest.raises(ValueError, match=r'2 \* num_heads, got out_channels=12, num_heads=4'):
        AttentionStem(3, 12)


@pytest.mark.parametrize('size', [(8, 12), (5, 7), (1, 2)])
def test_form_for_symbolic_sizes(size, monkeypatch):
    stem, image = AttentionStem(3, 8, num_heads=2).eval(), torch.randn(2, 3, *size)
    expected = stem(image)
    monkeypatch.setattr('mmlocalattn.layers.attention_stem.is_symbolic', lambda *lengths: True)
    torch.testing.assert_close(stem(image), expected)
