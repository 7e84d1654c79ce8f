"""Settings: YAML there and back, strict conversion, `auto`, and what cannot work is said before the first step."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from nolabel.config import TrainConfig, check, find_device, read_yaml, resolve, split_over_processes, to_yaml, update
from nolabel.config.load import config_yaml, from_mapping, load_recipe, method_name, with_old_defaults
from nolabel.errors import DataError, UsageError
from nolabel.methods import METHODS
from nolabel.methods.dino import DINO, DINOConfig
from nolabel.methods.simclr import SimCLRConfig
from nolabel.networks.arguments import parse_args
from nolabel.recipes import RECIPES
from nolabel.views import View

CPU = torch.device("cpu")
BASE: TrainConfig[Any] = TrainConfig(method=DINOConfig())


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "config.yaml").write_text(text)
    return tmp_path / "config.yaml"


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("resolved", [False, True])
def test_every_recipe_goes_to_yaml_and_back(name: str, resolved: bool, tmp_path: Path) -> None:
    config = dataclasses.replace(load_recipe(name), data="bilder/ä: b", backbone_args=("patch_size=4", "layers=[1,2]"))
    if resolved:
        config = resolve(config, 100_000, 2, CPU)
        assert "auto" not in re.sub(r"#.*", "", config_yaml(config))
    back = from_mapping(read_yaml(written(tmp_path, config_yaml(config))), "config.yaml")
    assert back == config and method_name(back) == RECIPES[name].method
    assert parse_args(back.backbone_args) == {"patch_size": 4, "layers": (1, 2)}


def test_yaml_keeps_every_digit_and_the_order_of_the_fields(tmp_path: Path) -> None:
    optim = dataclasses.replace(BASE.optim, lr=0.1 + 0.2, min_lr=1e-300, clip_grad=3.0)
    text = to_yaml(dataclasses.replace(BASE, optim=optim, steps=None, labels="no", compile=True))
    loaded = read_yaml(written(tmp_path, text))
    assert list(loaded) == [f.name for f in dataclasses.fields(TrainConfig)]
    assert update(BASE, loaded).optim == optim
    assert update(BASE, loaded).labels == "no"  # which YAML 1.1 would read as false without quotes


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"optim": {"lr": "1e-3"}}, 1e-3),  # YAML 1.1 reads it as a string
        ({"optim": {"lr": 1}}, 1.0),
        ({"optim": {"lr": 0.5}}, 0.5),
    ],
)
def test_numbers_become_floats(values: dict[str, Any], expected: float) -> None:
    lr = update(BASE, values).optim.lr
    assert lr == expected and type(lr) is float


def test_lists_become_tuples_of_the_right_types() -> None:
    config = update(BASE, {"mean": [0, 1, "2e-1"], "backbone_args": ["a=1"], "method": {"global_scale": [0, 1]}})
    assert config.mean == (0.0, 1.0, 0.2) and all(type(x) is float for x in config.mean)
    assert config.backbone_args == ("a=1",) and config.method.global_scale == (0.0, 1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 1.0}, "epochs cannot be 1.0: expected int."),
        ({"epochs": "10"}, "epochs cannot be '10'"),
        ({"epochs": True}, "epochs cannot be True"),
        ({"epochs": None}, "epochs cannot be None"),
        ({"compile": 1}, "compile cannot be 1: expected bool."),
        ({"compile": "yes"}, "compile cannot be 'yes'"),
        ({"data": 3}, "data cannot be 3: expected str."),
        ({"labels": 3}, "labels cannot be 3"),
        ({"precision": "fp64"}, "precision cannot be 'fp64'"),
        ({"micro_batch": "all"}, "micro_batch cannot be 'all'"),
        ({"micro_batch": 1.5}, "micro_batch cannot be 1.5"),
        ({"mean": [0, 0]}, "mean cannot be [0, 0]"),
        ({"mean": 0.5}, "mean cannot be 0.5"),
        ({"mean": [0, 0, "x"]}, "mean cannot be 'x'"),
        ({"backbone_args": "patch_size=4"}, "backbone_args cannot be 'patch_size=4'"),
        ({"optim": {"lr": True}}, "optim.lr cannot be True"),
        ({"optim": {"lr": "fast"}}, "optim.lr cannot be 'fast'"),
        ({"optim": {"lr": "nan"}}, "optim.lr cannot be 'nan'"),
        ({"optim": {"lr": math.inf}}, "optim.lr cannot be inf"),
        ({"optim": {"lr": 10**400}}, "optim.lr cannot be 1000"),
        ({"optim": {"name": "adam"}}, "optim.name cannot be 'adam'"),
        ({"optim": 3}, "optim is a group of settings, not 3."),
        ({"method": {"momentum": "slow"}}, "method.momentum cannot be 'slow'"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        update(BASE, values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 1}, "no setting epoch. Did you mean: epochs"),
        ({"batchsize": 1}, "no setting batchsize. Did you mean: batch_size"),
        ({"method": {"teacher_tmp": 1}}, "no setting method.teacher_tmp. Did you mean: teacher_temp"),
        ({"optim": {"learning_rate": 1}}, "no setting optim.learning_rate."),
        ({3: 1}, "no setting 3."),
    ],
)
def test_an_unknown_name_gets_the_nearest_ones(values: dict[Any, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        update(BASE, values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 1\nepochs: 2\n", "epochs.*more than once"),
        ("method:\n  a: 1\n  a: 2\n", "'a'.*more than once"),
        ("- 1\n", "holds no settings"),
        ("", "holds no settings"),
        ("just text", "holds no settings"),
        ("a: [1\n", "cannot be read"),
        ("a: !!python/object/apply:os.system ['true']\n", "cannot be read"),
        ("a: 1\n--- \nb: 2\n", "cannot be read"),
        ("x" * 1_000_001, "larger than 1 MB"),
    ],
)
def test_a_file_that_holds_no_settings_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_yaml(written(tmp_path, text))
    assert str(tmp_path) in str(caught.value) and len(str(caught.value).splitlines()) <= 5


def test_a_missing_and_a_binary_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("binary", "missing"):
        with pytest.raises(UsageError, match="cannot be read as settings"):
            read_yaml(tmp_path / name)


@pytest.mark.parametrize("values", [{}, {"method_name": "dyno"}, {"method_name": ["dino"]}])
def test_a_config_names_its_method(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="names no method: expected method_name to be one of densecl, dino, "):
        from_mapping(values, "config.yaml")


def test_auto_is_resolved_and_what_was_chosen_is_kept() -> None:
    config = resolve(dataclasses.replace(BASE, batch_size=64, log_every=7, threads=3), 1000, 2, CPU)
    assert not [f.name for f in dataclasses.fields(config) if getattr(config, f.name) == "auto"]
    assert (config.micro_batch, config.log_every, config.threads, config.device) == (32, 7, 3, "cpu")
    assert config.precision in ("fp32", "bf16") and config.checkpoint_every == 1000 // 64
    assert resolve(config, 1000, 2, CPU) == config


@pytest.mark.parametrize(("method", "way"), [("dino", "dino"), ("msn", "msn"), ("simclr", "timm"), ("densecl", "timm")])
def test_position_embeddings_are_resampled_as_the_methods_authors_do(method: str, way: str) -> None:
    for name in (name for name, recipe in RECIPES.items() if recipe.method == method):
        config = load_recipe(name)
        assert resolve(config, 2000, 1, CPU).positions == way
        chosen = resolve(dataclasses.replace(config, positions="timm"), 2000, 1, CPU)
        assert chosen.positions == "timm", "what is given stays"


OLD = {"method_name": "msn", "recipe": "msn-small", "method": {"momentum": 0.99}, "optim": {"lr": 0.1}}


def test_a_run_from_before_a_setting_keeps_the_way_of_then() -> None:
    before = from_mapping(with_old_defaults(OLD), "config.yaml")
    assert (before.positions, before.augment, before.view_engine) == ("timm", "cpu", "torch")
    assert not before.method.head_per_size and before.optim.lars_rate == "inside"
    assert (before.method.momentum, before.optim.lr, before.recipe) == (0.99, 0.1, "msn-small")
    now = from_mapping(OLD, "config.yaml")  # the settings of a new run, by --config
    assert now.positions == "auto" and now.method.head_per_size
    after = {"positions": "msn", "method": {"momentum": 0.99, "head_per_size": True}}
    kept = from_mapping(with_old_defaults(OLD | after), "config.yaml")
    assert kept.positions == "msn" and kept.method.head_per_size


@pytest.mark.parametrize("values", [{"method": 3}, {"method": None}, {"optim": [1]}, {"method_name": ["msn"]}], ids=str)
def test_old_defaults_hide_no_wrong_value(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        from_mapping(with_old_defaults(OLD | values), "config.yaml")


@pytest.mark.parametrize(("micro", "before", "expected"), [(32, 2, 64), (16, 2, 16), (64, 1, 64), (32, None, 32)])
def test_one_process_goes_on_with_the_share_of_all(micro: int, before: int | None, expected: int) -> None:
    config = dataclasses.replace(BASE, batch_size=64, micro_batch=micro)
    assert split_over_processes(config, before).micro_batch == expected


@pytest.mark.parametrize(
    ("steps", "batch", "expected"), [(1, 64, 1), (100, 64, 50), (1000, 64, 200), (1000, 256, 50), (10_000, 64, 500)]
)
def test_evaluations_are_as_far_apart_as_one_percent_allows(steps: int, batch: int, expected: int) -> None:
    config = dataclasses.replace(BASE, batch_size=batch, steps=steps)
    assert resolve(config, 1000, 1, CPU).eval_every == expected


@pytest.mark.parametrize(
    ("changed", "num_images", "world_size", "message"),
    [
        ({"batch_size": 64}, 63, 1, "holds 63 images, fewer than one batch of 64"),
        ({"batch_size": 64}, 3, 1, "Use --batch-size 3 or less, or more images"),
        ({"batch_size": 64}, 5, 2, "Use --batch-size 4 or less, or more images"),
        ({"batch_size": 64}, 1, 2, "Use more images"),
        ({"batch_size": 100}, 1000, 8, "100 does not split over 8 processes: use a multiple of 8"),
        ({"batch_size": 64, "micro_batch": 24}, 1000, 2, "24 does not divide the 32 images"),
        ({"batch_size": 0}, 1000, 1, "--batch-size 0"),
        ({"epochs": 0}, 1000, 1, "--epochs 0"),
        ({"steps": 0}, 1000, 1, "--steps 0"),
        ({"micro_batch": 0}, 1000, 1, "--micro-batch 0"),
        ({"log_every": 0}, 1000, 1, "--log-every 0"),
        ({"checkpoint_every": -1}, 1000, 1, "--checkpoint-every -1"),
        ({"keep_checkpoints": 0}, 1000, 1, "--keep-checkpoints 0"),
        ({"threads": 0}, 1000, 1, "--threads 0"),
        ({"workers": -1}, 1000, 1, "--workers -1"),
        ({"seed": -1}, 1000, 1, "--seed -1"),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(
    changed: dict[str, Any], num_images: int, world_size: int, message: str
) -> None:
    config = dataclasses.replace(BASE, **{"batch_size": 64, **changed})
    with pytest.raises((UsageError, DataError), match=message) as caught:
        resolve(config, num_images, world_size, CPU)
    assert len(str(caught.value).splitlines()) <= 5


@pytest.mark.parametrize(("size", "near"), [(100, "96 or 112"), (8, "16 px"), (223, "208 or 224")])
def test_crops_that_the_patches_do_not_divide(size: int, near: str) -> None:
    with pytest.raises(UsageError, match=f"Crops of {size} px(.|\n)*{near}"):
        check(BASE, [View(224, (0.4, 1)), View(size, (0.1, 0.4))], 16, False)
    check(BASE, [View(size, (0.1, 0.4))], None, False)  # a CNN takes any


def test_a_crop_without_pixels_is_refused() -> None:
    with pytest.raises(UsageError, match="0 px"):
        check(BASE, [View(0, (0.4, 1))], 16, False)


def test_the_warnings() -> None:
    fits = dataclasses.replace(BASE, batch_size=64, micro_batch=64)
    assert check(fits, [], None, True) == []
    split = dataclasses.replace(fits, micro_batch=32)
    assert check(split, [], None, False) == []
    assert "--micro-batch" in check(split, [], None, True)[0]


def test_a_device_that_is_not_there() -> None:
    assert find_device("cpu") == CPU
    with pytest.raises(UsageError, match="no device 'gpu'"):
        find_device("gpu")
    if not torch.cuda.is_available():
        assert find_device("auto").type in ("cpu", "mps")
        with pytest.raises(UsageError, match="no CUDA device"):
            find_device("cuda")


@pytest.mark.parametrize(
    ("num_images", "prototypes"), [(50, 512), (2048, 512), (9469, 2048), (50_000, 8192 * 2), (1_281_167, 65536)]
)
def test_dino_chooses_prototypes_for_the_number_of_images(num_images: int, prototypes: int) -> None:
    resolved = DINOConfig(num_prototypes="auto", momentum="auto").resolve(num_images, 32, 10_000)
    assert resolved.num_prototypes == prototypes
    assert isinstance(resolved.momentum, float) and 0.9 < resolved.momentum < 1
    assert DINOConfig().resolve(num_images, 32, 10_000) == DINOConfig()  # the paper's numbers stay


def test_a_warmup_of_the_teacher_temperature_that_is_longer_than_the_run_shrinks() -> None:
    config = DINOConfig(warmup_teacher_temp_epochs=30)
    assert config.resolve(1000, 100, 31 * 10).warmup_teacher_temp_epochs == 30
    assert config.resolve(1000, 100, 20 * 10).warmup_teacher_temp_epochs == 2
    assert config.resolve(1000, 100, 5).warmup_teacher_temp_epochs == 0


def test_the_paper_recipes_hold_the_papers_numbers() -> None:
    """Caron et al. 2021 and Chen et al. 2020; the linear rule lr * batch / 256 is in `optim`."""
    dino, boosted, resnet = (load_recipe(n) for n in ("dino", "dino-boosted", "dino-resnet50"))
    assert (dino.backbone, dino.epochs, dino.batch_size) == ("vit_small_patch16_224", 100, 512)
    c, o = dino.method, dino.optim
    assert (c.num_prototypes, c.hidden_dim, c.bottleneck_dim, c.head_layers) == (65536, 2048, 256, 3)
    assert (c.student_temp, c.teacher_temp, c.warmup_teacher_temp, c.center_momentum) == (0.1, 0.04, 0.04, 0.9)
    assert (c.momentum, c.freeze_last_layer, c.drop_path) == (0.996, 1, 0.1)
    assert not c.learn_magnitude and not c.head_batchnorm
    assert (o.name, o.lr, o.min_lr, o.warmup_epochs, o.clip_grad) == ("adamw", 5e-4, 1e-6, 10, 3.0)
    assert (o.weight_decay, o.weight_decay_end) == (0.04, 0.4)
    assert (boosted.epochs, boosted.batch_size, boosted.method.learn_magnitude) == (300, 1024, True)
    assert (boosted.method.teacher_temp, boosted.method.warmup_teacher_temp_epochs) == (0.07, 30)
    assert (resnet.backbone, resnet.optim.name, resnet.optim.lr) == ("resnet50", "sgd", 0.03)
    assert parse_args(resnet.backbone_args) == {"zero_init_last": False}
    assert (resnet.optim.weight_decay, resnet.optim.weight_decay_end) == (1e-4, 1e-4)
    assert (resnet.method.global_scale, resnet.method.local_scale) == ((0.14, 1.0), (0.05, 0.14))
    simclr = load_recipe("simclr")
    assert isinstance(simclr.method, SimCLRConfig)
    assert (simclr.method.temperature, simclr.method.projection_dim, simclr.method.scale) == (0.1, 128, (0.08, 1.0))
    assert (simclr.optim.name, simclr.optim.lr, simclr.optim.warmup_epochs, simclr.optim.min_lr) == ("lars", 0.3, 10, 0)
    assert (simclr.mean, simclr.std, simclr.optim.clip_grad) == ((0, 0, 0), (1, 1, 1), 0)


def test_each_method_is_found_by_its_settings() -> None:
    for name, method in METHODS.items():
        assert method_name(TrainConfig(method=method.Config())) == name
    assert METHODS["dino"] is DINO
