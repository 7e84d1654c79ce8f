"""Without a process group everything is the identity; two processes are tested in methods/test_two_processes.py."""

import pytest
import torch
from torch import nn

from nolabel import distributed
from nolabel.distributed.batchnorm import SyncBatchNorm, synchronize_batchnorm


def test_one_process_is_the_identity() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    for f in (distributed.all_sum, distributed.all_gather, distributed.all_mean):
        assert torch.equal(f(x), x)
    assert distributed.all_sum(x) is x and distributed.all_gather(x) is x
    assert distributed.any_process(True, x.device) and not distributed.any_process(False, x.device)
    distributed.barrier()
    with distributed.process_group(x.device):
        assert not distributed.active()


def test_no_group_is_started_for_a_world_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with distributed.process_group(torch.device("cpu")):
        assert not distributed.active()


def test_batchnorm_stays_itself_in_one_process() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3))
    assert type(synchronize_batchnorm(net)[0]) is nn.BatchNorm1d


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.BatchNorm1d(4), nn.BatchNorm2d(4, affine=False)])
def test_the_synchronised_form_takes_over_everything(norm: nn.modules.batchnorm._BatchNorm) -> None:
    """Same keys, same tensors: what several processes save is what one process loads."""
    ours = SyncBatchNorm(norm)
    assert ours.state_dict().keys() == norm.state_dict().keys()
    assert all(ours.state_dict()[k].data_ptr() == v.data_ptr() for k, v in norm.state_dict().items())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in norm.named_parameters()]


@pytest.mark.parametrize("training", [True, False])
def test_without_a_group_it_computes_what_batchnorm_does(training: bool) -> None:
    norm, x = nn.BatchNorm2d(4), torch.randn(5, 4, 3, 3)
    norm.running_mean.normal_()
    ours = SyncBatchNorm(norm).train(training)
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    out = ours(x)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)
    torch.testing.assert_close(out, norm.train(training)(x))


def test_the_activation_of_timms_norm_is_kept() -> None:
    from timm.layers import BatchNormAct2d

    norm, x = BatchNormAct2d(4), torch.randn(5, 4, 3, 3)
    expected = norm(x)
    ours = SyncBatchNorm(norm)
    assert ours.state_dict().keys() == norm.state_dict().keys()
    torch.testing.assert_close(ours(x), expected)
    assert expected.min() == 0
