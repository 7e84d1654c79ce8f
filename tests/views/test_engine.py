"""Views by numba against those by torch, and what happens where numba is missing."""

import sys

import pytest
import torch

from nolabel.data.demo import world
from nolabel.errors import UsageError
from nolabel.views import View, draw, fastest, view_function

IMAGE = torch.from_numpy(world.render(3, 3, 160)[0]).permute(2, 0, 1)


def test_both_make_the_same_views() -> None:
    """One level apart at most, where a value lies between two levels."""
    pytest.importorskip("numba", reason="the extra fast is not installed")
    different, pixels = 0, 0
    for size in (1, 2, 5, 32, 45, 96):  # less and more than the radius of the blur; no multiple of a vector
        view = View(size, (0.1, 1.0), jitter=(0.4, 0.4, 0.4, 0.3), jitter_p=0.9, blur=0.7, solarize=0.3)
        for i in range(30):
            drawn = draw(view, (0, 0, i, 0), 160, 160)
            one, other = (view_function(name)(IMAGE, view, drawn).int() for name in ("torch", "numba"))
            assert (one - other).abs().max() <= 1, drawn
            different, pixels = different + int((one != other).sum()), pixels + one.numel()
    assert different / pixels < 1e-4


@pytest.fixture
def no_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)  # an import of it fails
    monkeypatch.delitem(sys.modules, "nolabel.views.cpu_numba", raising=False)
    monkeypatch.setattr("nolabel.views.engine.view_function", view_function.__wrapped__)


@pytest.mark.usefixtures("no_numba")
def test_without_numba_torch_is_used_and_an_error_names_the_extra() -> None:
    assert fastest() == "torch"
    with pytest.raises(UsageError, match=r"pip install 'nolabel\[fast\]'") as error:
        view_function.__wrapped__("numba")
    assert len(str(error.value).splitlines()) <= 5
