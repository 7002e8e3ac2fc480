"""The gradient of a network's loss written by hand, against torch.autograd; and the gradient of that gradient."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.ops.fast_network import Activation, Linear, Network, Norm, mlp

F64 = torch.float64
NETWORKS = {
    "matrix": mlp((4, 3)),
    "two layers": mlp((4, 6, 3)),
    "three layers, silu, biases": mlp((4, 5, 6, 3), activation="silu", bias=True),
    "tanh": mlp((4, 5, 3), activation="tanh"),
    "residual, normed": mlp((4, 6, 4), norm=True, residual=True),
    "gated": mlp((4, 5, 4), activation="silu", gated=True, residual=True),
    "an activation first": Network(layers=(Activation(), Linear(inputs=4, outputs=3))),
}


def weights_of(network, *batch):
    return [torch.randn(*batch, *layer.shape, dtype=F64, requires_grad=True) for layer in network.fast]


def formed(network, factors):
    """The sum over tokens of each weight's gradient."""
    ones = torch.ones(factors[0].inputs.shape[:-1], dtype=F64)
    return [layer.summed(of, ones) for layer, of in zip(network.fast, factors, strict=True)]


def by_layers(network, x, weights):
    """M(x) of functions that torch differentiates as often as one likes."""
    u, left = x, list(weights)
    for layer in network.layers:
        u = F.layer_norm(u, u.shape[-1:], eps=1e-5) if isinstance(layer, Norm) else layer.enter(u)
        u = layer.times(u, left.pop(0)) if isinstance(layer, Linear | Norm) else u
    return x + u if network.residual else u


@pytest.mark.parametrize("name", NETWORKS)
def test_factors_are_the_gradient_of_the_loss(name):
    network = NETWORKS[name]
    k, weights = torch.randn(2, 2, 5, 4, dtype=F64), weights_of(network, 2, 2)
    prediction, way = network.kept(k, weights)
    assert_close(prediction, network(k, weights), rtol=1e-12, atol=1e-12)
    assert_close(prediction, by_layers(network, k, weights), rtol=1e-12, atol=1e-12)
    v = torch.randn_like(prediction)
    wanted = torch.autograd.grad(0.5 * (network(k, weights) - v).square().sum(), weights)
    for found, true in zip(formed(network, network.factors(prediction - v, way, weights)), wanted, strict=True):
        assert_close(found, true, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_of_the_gradient_is_that_of_autograd(name):
    network = NETWORKS[name]
    k = torch.randn(1, 2, 3, 4, dtype=F64, requires_grad=True)
    weights, v = weights_of(network, 1, 2), torch.randn(1, 2, 3, network.fast[-1].shape[-1], dtype=F64, requires_grad=True)
    sources = [k, v, *weights]

    def by_hand():
        prediction, way = network.kept(k, weights)
        return formed(network, network.factors(prediction - v, way, weights))

    by_torch = torch.autograd.grad(0.5 * (by_layers(network, k, weights) - v).square().sum(), weights, create_graph=True)
    seeds = [torch.randn_like(g) for g in by_torch]
    second = [
        torch.autograd.grad(sum((g * s).sum() for g, s in zip(u, seeds, strict=True)), sources, allow_unused=True, materialize_grads=True)
        for u in (by_hand(), by_torch)
    ]
    for found, wanted in zip(*second, strict=True):
        assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_the_norm_of_a_tokens_gradient_needs_no_gradient_formed():
    network = NETWORKS["residual, normed"]
    k, weights = torch.randn(1, 1, 4, 4, dtype=F64), weights_of(network, 1, 1)
    prediction, way = network.kept(k, weights)
    factors = network.factors(prediction, way, weights)
    squared = sum(layer.squared(of) for layer, of in zip(network.fast, factors, strict=True))
    for t in range(4):
        alone = formed(network, [type(of)(*(z[:, :, t : t + 1] for z in of)) for of in factors])
        assert_close(squared[0, 0, t], sum(u.square().sum() for u in alone), rtol=1e-12, atol=0)


def test_networks_that_make_no_sense_are_refused_in_words():
    for sizes, options, words in (((4,), {}, "an input and an output"), ((4, 8, 3), {"residual": True}, "begin and end alike")):
        with pytest.raises(ConfigError, match=words):
            mlp(sizes, **options)
