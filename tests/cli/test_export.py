"""`nolabel export`: what timm opens gives the same features; wrong formats, places and exports are refused."""

from pathlib import Path

import pytest
import timm
import torch

from nolabel.cli.main import main
from nolabel.errors import StorageError
from nolabel.weights import FORMATS
from nolabel.weights.format import Format, export
from nolabel.weights.load import load_weights

NET = "random:test_vit"


def test_timm_opens_the_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["export", NET, "--to", "timm", "--out", str(tmp_path / "w")])
    assert "features differ by 0.0e+00" in capsys.readouterr().out
    loaded = load_weights(tmp_path / "w")
    model = timm.create_model(f"local-dir:{tmp_path}/w", pretrained=True, num_classes=0).eval()
    x = torch.randn(1, 3, loaded.image_size, loaded.image_size)
    with torch.no_grad():
        assert torch.equal(loaded.backbone(x).pooled, model(x))


@pytest.mark.parametrize(("to", "message"), [("tinn", "Did you mean: timm"), ("timm", "exists: choose another --out")])
def test_what_is_refused(to: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "thesis.tex").touch()
    with pytest.raises(SystemExit) as left:
        main(["export", NET, "--to", to, "--out", str(tmp_path / "w")])
    assert left.value.code == 2 and message in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["thesis.tex"]


def test_a_new_format_is_one_file_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for shift, code in ((0.0, 0), (0.1, 74)):
        toy = Format(
            "a toy",
            lambda loaded, path: torch.save(loaded.backbone.state_dict(), path),
            lambda path, shift=shift: lambda x: load_weights(NET).backbone(x).pooled + shift,  # type: ignore[misc]
        )
        monkeypatch.setitem(FORMATS, "toy", toy)
        arguments = ["export", NET, "--to", "toy", "--out", str(tmp_path / f"w{code}")]
        if not code:
            main(arguments)
            assert "a toy; features differ by 0.0e+00" in capsys.readouterr().out
            continue
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == code and "gives other features" in capsys.readouterr().err


def test_features_that_are_not_numbers_are_no_export(tmp_path: Path) -> None:
    toy = Format("", lambda loaded, path: None, lambda path: lambda x: torch.full((len(x), 64), torch.nan))
    with pytest.raises(StorageError, match="gives other features"):
        export(load_weights(NET), toy, tmp_path / "w")
