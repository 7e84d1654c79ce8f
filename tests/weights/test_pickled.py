"""Weight files of other projects: tensors are read without running code, everything else is named in words."""

import argparse
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from nolabel.errors import DataError, UsageError
from nolabel.networks.backbones import backbone
from nolabel.weights.load import load_weights
from nolabel.weights.pickled import read_pickled

NETWORK = {"cls_token": torch.zeros(1, 1, 4), "norm.weight": torch.ones(4)}


class Foreign:
    """An object of another project."""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"student": NETWORK, "teacher": OrderedDict(NETWORK), "epoch": 3},
            r"student \(2 tensors\), teacher \(2 .*epoch",
        ),
        ({"model": NETWORK, "args": argparse.Namespace(arch="vit")}, r"model \(2 tensors\), args\."),
        ({"epoch": 3}, r"no tensors: found epoch"),
        ([1, 2], r"holds a list"),
        ({"teacher": NETWORK, "cfg": Foreign()}, r"objects of [\w.]+Foreign .*It holds teacher, cfg\."),
        (Foreign(), r"objects of [\w.]+Foreign"),
    ],
)
def test_a_file_that_is_no_state_dict_says_what_it_holds(content: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(DataError, match=rf"(?s){words}") as caught:
        read_pickled(path)
    message = str(caught.value)
    assert "\x1b" not in message and len(message.splitlines()) <= 5 and message.isascii()
    if isinstance(content, dict) and "teacher" in content:
        assert "['teacher'], 'weights.pth')" in message


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 torn", b"\x80\x04."])
def test_a_damaged_file_is_called_damaged(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        read_pickled(path)


def test_arguments_of_a_run_may_be_beside_the_tensors(tmp_path: Path) -> None:
    torch.save(NETWORK | {"args": argparse.Namespace(lr=1)}, tmp_path / "w.pth")
    assert read_pickled(tmp_path / "w.pth").keys() == NETWORK.keys()


def test_a_timm_folder_with_a_pickle_is_read_when_that_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = backbone("test_resnet")
    torch.save(net.model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "test_resnet", "num_classes": 0, "std": [1, 1, 1]})
    )
    with pytest.raises(UsageError, match=r"pytorch_model.bin, a pickle.*\n.*--allow-pth"):
        load_weights(tmp_path)
    loaded = load_weights(tmp_path, allow_pth=True)
    assert torch.equal(loaded.backbone.model.conv1[0].weight, net.model.conv1[0].weight)
    note = capsys.readouterr().err
    assert "does not hold how its images were prepared" in note and "mean 0.5 0.5 0.5" in note and "std" not in note


def test_a_bare_file_names_the_normalisation_that_was_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(backbone("resnet18").model.state_dict(), tmp_path / "w.pth")
    loaded = load_weights(tmp_path / "w.pth", "resnet18", allow_pth=True)
    assert loaded.mean == (0.485, 0.456, 0.406)
    assert "mean 0.485 0.456 0.406, std 0.229 0.224 0.225, 224 px, bicubic" in capsys.readouterr().err.replace(
        "\n", " "
    )
