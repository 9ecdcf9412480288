"""The fast products of fields against loops and against TorchRec's own modules where they compute the same."""

import pytest
import torch
from torch.testing import assert_close
from torchrec.models.dlrm import InteractionArch
from torchrec.modules.crossnet import LowRankMixtureCrossNet, VectorCrossNet

from sparta.models.interactions import MixtureCross, VectorCross, inner_products, second_order


def fields(count: int, dim: int = 4) -> torch.Tensor:
    x: torch.Tensor = torch.randn(6, count, dim, generator=torch.Generator().manual_seed(count))
    return x.requires_grad_()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_inner_products_are_all_pairs_in_row_major_order(count: int) -> None:
    x = fields(count)
    pairs = [(x[:, i] * x[:, j]).sum(1) for i in range(count) for j in range(i + 1, count)]
    expected = torch.stack(pairs, dim=1) if pairs else torch.zeros(6, 0)
    assert_close(inner_products(x), expected)
    assert_close(second_order(x), expected.sum(1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_inner_products_are_torchrecs_interaction() -> None:
    x = fields(5)
    assert_close(torch.cat([x[:, 0], inner_products(x)], dim=1), InteractionArch(4)(x[:, 0], x[:, 1:]))


def test_gradients_are_those_of_the_definition() -> None:
    x = fields(5).detach().double().requires_grad_()
    assert torch.autograd.gradcheck(inner_products, x)
    assert torch.autograd.gradcheck(second_order, x)


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_vector_cross_is_torchrecs(layers: int) -> None:
    theirs, ours = VectorCrossNet(10, layers), VectorCross(10, layers)
    with torch.no_grad():
        for layer in range(layers):
            theirs.bias[layer].normal_()
            ours.weights_LN[layer] = theirs.kernels[layer][:, 0]
            ours.biases_LN[layer] = theirs.bias[layer][:, 0]
    x = fields(1, 10)[:, 0]
    assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("experts", [1, 3])
def test_mixture_cross_is_torchrecs(experts: int) -> None:
    theirs = LowRankMixtureCrossNet(10, 2, num_experts=experts, low_rank=3, activation=torch.tanh)
    ours = MixtureCross(10, 2, low_rank=3, experts=experts)
    with torch.no_grad():
        for layer in range(2):
            theirs.bias[layer].normal_()
            ours.bias[layer].copy_(theirs.bias[layer][:, 0])
            ours.U[layer].copy_(theirs.U_kernels[layer])
            ours.V[layer].copy_(theirs.V_kernels[layer])
            ours.C[layer].copy_(theirs.C_kernels[layer])
        if ours.gate_KN is not None:
            ours.gate_KN.copy_(torch.cat([gate.weight for gate in theirs.gates]))
    x = fields(1, 10)[:, 0]
    assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
