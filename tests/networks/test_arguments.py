"""Arguments shape a network and do nothing else: no file, no loading, no class by name, no network beyond memory."""

import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models._builder import build_model_with_cfg

from nolabel.errors import DataError, UsageError
from nolabel.networks.arguments import COUNTS, SHAPES, check_args, parse_args
from nolabel.networks.backbones import backbone
from nolabel.weights.load import load_weights, read_preprocessing
from nolabel.weights.timm import save_weights

LOADING = [
    {"checkpoint_path": "private.pth"}, {"pretrained": True}, {"pretrained_cfg": {"file": "private.pth"}},
    {"pretrained_cfg": "tag"}, {"pretrained_cfg_overlay": {"url": "http://127.0.0.1"}}, {"cache_dir": "x"},
    {"pretrained_strict": False}, {"features_only": True}, {"feature_cfg": {}}, {"out_indices": [0]},
    {"scriptable": True}, {"exportable": True}, {"no_jit": True}, {"hf_hub_id": "a/b"}, {"device": "meta"},
    {"dtype": "float16"}, {"weight_init": "skip"}, {"pruned": True}, {"kwargs_filter": []}, {"model_cfg": {}},
    {"block_fn": "os.system"}, {"embed_layer": "x"}, {"attn_layer": "x"}, {"mlp_layer": "x"}, {"": 1}, {"a" * 9999: 1},
    {"__class__": 1}, {"self": 1}, {"num_classes ": 3}, {"in_chans": 1},
]  # fmt: skip
VALUES = [
    {"depth": 10**9}, {"depth": [500, 501]}, {"embed_dim": 10**12}, {"embed_dim": -(10**12)}, {"img_size": 10**6},
    {"depth": 10**400}, {"mlp_ratio": math.inf}, {"mlp_ratio": math.nan}, {"depth": 1e300}, {"act_layer": "x" * 101},
    {"act_layer": {"a": 1}}, {"norm_layer": [[["deep"]]]}, {"patch_size": [1] * 300}, {"patch_size": 2.5},
    {"patch_size": 0}, {"patch_size": -4}, {"patch_size": "abc"}, {"patch_size": [8]}, {"num_heads": 0},
    {"num_heads": 7}, {"depth": -1}, {"depth": "two"}, {"act_layer": "os.system"}, {"norm_layer": "nothing"},
    {"global_pool": "nothing"}, {"img_size": "abc"}, {"img_size": []}, {"class_token": False, "global_pool": "token"},
    {"embed_dim": 0}, {"embed_dim": True}, {"pos_embed": "x"}, {"embed_dim": 65_536, "depth": 50, "num_heads": 1},
    {"img_size": 65_536, "patch_size": 1},
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of a small network; the test fails where torch.load is asked for anything."""
    monkeypatch.chdir(tmp_path)
    net = backbone("test_vit")
    save_weights(net, tmp_path / "weights", 160, (0.5,) * 3, (0.5,) * 3)
    torch.save(net.model.state_dict(), tmp_path / "private.pth")

    def opened(*args: object, **_: object) -> None:
        pytest.fail(f"torch.load{args}")

    monkeypatch.setattr(torch, "load", opened)
    return tmp_path / "weights"


def change(folder: Path, **changed: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))


@pytest.mark.parametrize("args", [*LOADING, *VALUES], ids=lambda args: str(args)[:40])
def test_arguments_of_strangers_are_refused(args: dict[str, Any], folder: Path) -> None:
    change(folder, model_args=args)
    with pytest.raises(DataError, match=r"config\.json is damaged") as caught:
        load_weights(folder)
    assert len(str(caught.value).splitlines()) <= 5 and len(str(caught.value)) < 1500


@pytest.mark.parametrize("args", [*LOADING, *VALUES], ids=lambda args: str(args)[:40])
def test_arguments_of_users_are_refused(args: dict[str, Any], folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        backbone("test_vit", {k: tuple(v) if isinstance(v, list) else v for k, v in args.items()})
    assert len(str(caught.value).splitlines()) <= 5 and len(str(caught.value)) < 1000


def test_what_is_let_through_loads_nothing() -> None:
    takes = set(inspect.signature(timm.create_model).parameters) | set(
        inspect.signature(build_model_with_cfg).parameters
    )
    assert "checkpoint_path" in takes and not (COUNTS | SHAPES) & takes
    assert not {name for name in COUNTS | SHAPES if any(part in name for part in ("path", "url", "cache", "cfg"))} - {
        "drop_path_rate"
    }


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "act_layer": "gelu"}),
        ("vit_tiny_patch16_224", {"depth": 1, "reg_tokens": 4, "init_values": 1e-5, "in_chans": 3}),
        ("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32), "output_stride": 8, "act_layer": "silu"}),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "window_size": 7, "drop_path_rate": 0.1}),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), "use_grn": True}),
    ],
)  # fmt: skip
def test_what_shapes_a_network_is_let_through(name: str, args: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    check_args(name, args)
    assert torch.equal(before, torch.get_rng_state())
    assert backbone(name, args).num_features > 0


def test_looking_at_the_size_draws_nothing() -> None:
    """With arguments a network is put together twice, the first time without memory: its weights stay the same."""
    found = []
    for args in ({}, {"qkv_bias": True}):
        torch.manual_seed(0)
        found.append(backbone("test_vit", args).model.state_dict())
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_a_network_beyond_memory_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nolabel.networks.arguments._memory", lambda: 10**6)
    with pytest.raises(UsageError, match="GiB"):
        backbone("vit_tiny_patch16_224", {"depth": 3})


def test_a_network_beyond_its_file_is_refused_before_it_is_made(folder: Path) -> None:
    change(folder, architecture="vit_giant_patch14_224", model_args={})
    with pytest.raises(DataError, match="would take"):
        load_weights(folder)


def test_hostile_pairs_are_refused() -> None:
    for value in ("[" * 1500, "2024-99-99", "9" * 5000, "&a [*a]", "!!python/name:os.system"):
        with pytest.raises(UsageError):
            check_args("test_vit", parse_args((f"depth={value}",)))


# ---- how images are prepared


CFGS: list[tuple[str, Any]] = [
    ("mapping", []), ("mapping", None), ("mapping", "x"), ("mapping", 3),
    ("mean", {"mean": ["a"] * 3}), ("mean", {"mean": 3}), ("mean", {"mean": [0.5]}), ("mean", {"mean": [math.nan] * 3}),
    ("mean", {"mean": None}), ("mean", {"mean": [0.5] * 4}), ("mean", {"mean": [123.7, 116.3, 103.5]}),
    ("mean", {"mean": [True] * 3}), ("mean", {"mean": {"a": 1}}), ("mean", {"mean": [-0.1, 0, 0]}),
    ("std", {"std": [0, 0, 0]}), ("std", {"std": [0.5]}), ("std", {"std": [math.inf] * 3}), ("std", {"std": "abc"}),
    ("std", {"std": [-0.5] * 3}), ("std", {"std": [58.4, 57.1, 57.4]}), ("std", {"std": [10**400] * 3}),
    ("input_size", {"input_size": None}), ("input_size", {"input_size": "abc"}), ("input_size", {"input_size": -1}),
    ("input_size", {"input_size": [3, -1, -1]}), ("input_size", {"input_size": [3, 0, 0]}),
    ("input_size", {"input_size": [1, 32, 32]}), ("input_size", {"input_size": [3, 32.0, 32.0]}),
    ("input_size", {"input_size": [3, 32]}), ("input_size", {"input_size": [3, 10**9, 10**9]}),
    ("interpolation", {"interpolation": "random"}), ("interpolation", {"interpolation": 3}),
    ("interpolation", {"interpolation": None}), ("interpolation", {"interpolation": ["bicubic"]}),
]  # fmt: skip


@pytest.mark.parametrize(("key", "cfg"), CFGS, ids=[str(cfg)[:40] for _, cfg in CFGS])
def test_a_preparation_that_makes_no_sense_is_damage(key: str, cfg: Any, folder: Path) -> None:
    whole = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
    change(folder, pretrained_cfg=whole | cfg if isinstance(cfg, dict) else cfg)
    with pytest.raises(DataError, match=key) as caught:
        load_weights(folder)
    assert len(str(caught.value)) < 500


def test_preparation_is_beside_the_architecture_in_older_files(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    cfg = {"input_size": [3, 96, 96], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}
    del config["pretrained_cfg"]
    (folder / "config.json").write_text(json.dumps(config | cfg))
    loaded = load_weights(folder)
    assert (loaded.image_size, loaded.mean, loaded.std, loaded.interpolation) == (
        96, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear",
    )  # fmt: skip


def test_preparation_of_timms_networks_is_valid() -> None:
    for name in timm.list_models(pretrained=True)[::7]:
        read_preprocessing(vars(timm.get_pretrained_cfg(name)))
