"""Every gate on pixels holds for each code that makes views on the CPU."""

import pytest

from nolabel.views import Apply, view_function


@pytest.fixture(params=["torch", "numba"])
def apply(request: pytest.FixtureRequest) -> Apply:
    """The function that makes a view."""
    if request.param == "numba":
        pytest.importorskip("numba", reason="the extra fast is not installed")
    return view_function(request.param)
