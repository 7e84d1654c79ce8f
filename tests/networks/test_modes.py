import pytest
import torch
from torch import nn

from nolabel.networks.modes import evaluating
from nolabel.networks.precision import DTYPES, autocast


def test_every_module_gets_its_own_mode_back() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout()).train()
    net[1].eval()
    modes = [module.training for module in net.modules()]
    with pytest.raises(RuntimeError, match="in between"), evaluating(net):
        assert not any(module.training for module in net.modules())
        assert not net(torch.ones(3, 2)).requires_grad
        raise RuntimeError("in between")
    assert [module.training for module in net.modules()] == modes
    assert net(torch.ones(3, 2)).requires_grad


@pytest.mark.parametrize("precision", DTYPES)
def test_products_are_in_the_precision(precision: str) -> None:
    with autocast("cpu", precision):  # type: ignore[arg-type]
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == DTYPES[precision]  # type: ignore[index]
