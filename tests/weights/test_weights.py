"""Weights go out so that timm opens them, and come back from everything a WEIGHTS argument may name."""

import json
import os
import stat
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from nolabel.errors import DataError, UsageError
from nolabel.evals.protocol import untrained
from nolabel.networks.backbones import Backbone, backbone
from nolabel.networks.positions import Resampling
from nolabel.weights.load import load_weights
from nolabel.weights.timm import FORMAT, save_weights

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
VIT = "vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
RESNET = "resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32), "output_stride": 8}


def trained(kind: tuple[str, dict[str, object]], seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    net = backbone(*kind, image_size=32, drop_path=0.1)
    net.train()(torch.randn(4, 3, 32, 32))  # moves the statistics of BatchNorm
    return net.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The weights of a small ViT."""
    save_weights(trained(VIT), tmp_path / "weights", 32, MEAN, STD)
    return tmp_path / "weights"


@pytest.mark.parametrize("kind", [VIT, RESNET])
def test_timm_opens_the_folder(kind: tuple[str, dict[str, object]], tmp_path: Path) -> None:
    net, folder = trained(kind), tmp_path / "weights"
    save_weights(net, folder, 32, MEAN, STD)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), net(x).pooled)
    assert all(torch.equal(v, net.model.state_dict()[k]) for k, v in model.state_dict().items())
    data = timm.data.resolve_model_data_config(model)
    assert (tuple(data["mean"]), tuple(data["std"]), data["input_size"]) == (MEAN, STD, (3, 32, 32))
    if kind is VIT:
        assert model(torch.randn(1, 3, 48, 24)).shape == (1, 32)


@pytest.mark.parametrize("kind", [VIT, RESNET])
def test_nolabel_opens_the_folder(kind: tuple[str, dict[str, object]], tmp_path: Path) -> None:
    net = trained(kind)
    save_weights(net, tmp_path / "run" / "weights", 32, MEAN, STD)
    for spec in (tmp_path / "run" / "weights", tmp_path / "run", str(tmp_path / "run")):
        loaded = load_weights(spec)
        assert (loaded.mean, loaded.std, loaded.image_size, loaded.name) == (MEAN, STD, 32, str(spec))
        assert not loaded.backbone.training and not any(p.requires_grad for p in loaded.backbone.parameters())
        x = torch.randn(2, 3, 32, 32)
        assert torch.equal(loaded.backbone(x).pooled, net(x).pooled)


@pytest.mark.parametrize("way", ["dino", "msn"])
def test_a_folder_carries_how_positions_are_resampled(way: Resampling, tmp_path: Path) -> None:
    """Opened by nolabel, the features are those of the run at any size; by timm, at the stored one."""
    torch.manual_seed(0)
    net = backbone(*VIT, image_size=32, positions=way).eval()
    save_weights(net, tmp_path / "weights", 32, MEAN, STD, "bilinear")
    loaded = load_weights(tmp_path / "weights")
    theirs = timm.create_model(f"local-dir:{tmp_path}/weights", pretrained=True).eval()
    assert (loaded.backbone.positions, loaded.interpolation) == (way, "bilinear")
    assert timm.data.resolve_model_data_config(theirs)["interpolation"] == "bilinear"
    for size in (32, 16, 64):
        x = torch.randn(1, 3, size, size)
        assert torch.equal(loaded.backbone(x).pooled, net(x).pooled)
        assert torch.allclose(theirs(x), net(x).pooled, atol=1e-5) is (size == 32)
    assert untrained(loaded, 0).backbone.positions == way
    FORMAT.save(loaded, tmp_path / "export")
    config, exported = (json.loads((tmp_path / f / "config.json").read_text()) for f in ("weights", "export"))
    assert exported == config
    for broken in ({"positions": "timn"}, {"positions": 3}, {"positions": ["dino"]}, [], "dino", None):
        (tmp_path / "weights" / "config.json").write_text(json.dumps(config | {"nolabel": broken}))
        with pytest.raises(DataError, match=r"config\.json is damaged"):
            load_weights(tmp_path / "weights")


def test_a_bare_folder_is_timms(folder: Path) -> None:
    assert "nolabel" not in json.loads((folder / "config.json").read_text())
    assert load_weights(folder).backbone.positions == "timm"


def test_equal_weights_give_equal_bytes_and_every_colleague_can_read_them(folder: Path, tmp_path: Path) -> None:
    save_weights(trained(VIT), tmp_path / "elsewhere" / "other", 32, MEAN, STD)
    umask = os.umask(0)
    os.umask(umask)
    assert sorted(f.name for f in folder.iterdir()) == ["config.json", "model.safetensors"]
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "elsewhere" / "other" / file.name).read_bytes()
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask
    assert sorted(f.name for f in folder.parent.iterdir()) == ["elsewhere", "weights"]  # nothing left aside


def test_weights_are_renewed_in_place(folder: Path) -> None:
    old = load_weights(folder)
    save_weights(trained(VIT, seed=1), folder, 32, MEAN, STD)
    new = load_weights(folder)
    assert old.fingerprint != new.fingerprint == load_weights(folder).fingerprint
    assert len(new.fingerprint) == 16


def test_a_bare_file_needs_the_name_of_its_backbone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = backbone("test_vit").eval()
    save_weights(net, tmp_path / "weights", 160, MEAN, STD)
    file = tmp_path / "weights" / "model.safetensors"
    with pytest.raises(UsageError, match="--backbone"):
        load_weights(file)
    x = torch.randn(1, 3, 160, 160)
    assert torch.equal(load_weights(file, "test_vit").backbone(x).pooled, net(x).pooled)
    with pytest.raises(DataError, match="do not fit resnet18"):
        load_weights(file, "resnet18")


def test_a_pth_is_read_only_when_allowed_and_never_runs_code(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = backbone("test_vit").eval()
    torch.save(net.model.state_dict(), tmp_path / "good.pth")
    with pytest.raises(UsageError, match="--allow-pth"):
        load_weights(tmp_path / "good.pth", "test_vit")
    x = torch.randn(1, 3, 160, 160)
    assert torch.equal(
        load_weights(tmp_path / "good.pth", "test_vit", allow_pth=True).backbone(x).pooled, net(x).pooled
    )

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return os.mkdir, (str(tmp_path / "was here"),)

    torch.save({"cls_token": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "torn.pth").write_bytes((tmp_path / "good.pth").read_bytes()[:1000])
    for name in ("evil.pth", "torn.pth"):
        with pytest.raises(DataError, match=name):
            load_weights(tmp_path / name, "test_vit", allow_pth=True)
    assert not (tmp_path / "was here").exists()


def test_random_is_the_same_untrained_network_every_time() -> None:
    state = torch.random.get_rng_state()
    a, b = load_weights("random:test_vit"), load_weights("random:test_vit")
    assert a.fingerprint == b.fingerprint and a.name == "random:test_vit"
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(UsageError, match="no backbone"):
        load_weights("random:nonsense")


def test_a_timm_name_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot as the hub's library keeps it; the classifier that published weights have is left out."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=10).eval()
    folder = tmp_path / "models--timm--test_vit.r160_in1k" / "snapshots" / "main"
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    loaded, x = load_weights("test_vit.r160_in1k"), torch.randn(1, 3, 160, 160)
    assert torch.equal(loaded.backbone(x).pooled, model.forward_head(model.forward_features(x), pre_logits=True))
    assert loaded.image_size == 160 and loaded.name == "test_vit.r160_in1k"


def test_a_timm_name_outside_the_cache_is_refused_without_the_network() -> None:
    """The fixture `no_network` would fail this test if the hub were asked."""
    with pytest.raises(UsageError, match="not in the local cache"):
        load_weights("test_vit.r160_in1k")
    with pytest.raises(UsageError, match=r"no backbone 'test_vot'.*test_vit"):
        load_weights("test_vot")


@pytest.mark.parametrize("spec", ["missing", "missing/folder", "missing.safetensors", "missing.pth"])
def test_missing_parts_are_reported(tmp_path: Path, spec: str) -> None:
    with pytest.raises(UsageError, match="no weights at"):
        load_weights(tmp_path / spec, "test_vit")


def test_a_run_without_weights_and_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no weights at"):
        load_weights(tmp_path)
    (tmp_path / "config.yaml").write_text("method_name: dino\n")
    with pytest.raises(UsageError, match="run without weights yet"):
        load_weights(tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_torn_weight_file_is_named(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"model\.safetensors is damaged or missing"):
        load_weights(folder)


def test_a_missing_weight_file_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"model\.safetensors is damaged or missing"):
        load_weights(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"architecture": 3}', "null", '{"architecture": "resnet18", "model_args": 7}']
)
def test_a_damaged_config_is_named(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises((DataError, UsageError)) as caught:
        load_weights(folder)
    assert len(str(caught.value).splitlines()) <= 5


def test_tensors_of_another_network_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["embed_dim"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="do not fit") as caught:
        load_weights(folder)
    assert len(str(caught.value).splitlines()) <= 5


def test_the_file_holds_the_timm_names_alone(folder: Path) -> None:
    assert load_file(folder / "model.safetensors").keys() == trained(VIT).model.state_dict().keys()


def test_a_pipe_in_the_place_of_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="it is no file"):
        load_weights(tmp_path)
