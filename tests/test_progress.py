"""The live line of training: a line with numbers, or none."""

import pytest

from nolabel.progress import progress, summary


def test_an_evaluation_without_labels_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(0, 12) as show:
        show(12, {"loss": 1.25, "lr": 0.1, "img_per_s": 64.0, "data_wait": 0.5, "health": "healthy"})
        show(12, {"rankme": 3.0})
        show(12, {"knn": 40.0})
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "step 12/12 | loss 1.250 | lr 1.0e-01 | 64 img/s | loader 50 % | health: healthy | 0:00 left",
        "step 12/12 | k-NN 40.0 % | 0:00 left",
    ]


def test_nothing_is_shown_where_another_process_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(0, 12, show=False) as say:
        say(12, {"loss": 1.25})
    assert capsys.readouterr().err == "" and summary({}) == ""
