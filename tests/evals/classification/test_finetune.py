"""Fine-tuning: its parts by formula, what moves, what is random and what is not, and the result."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from nolabel.data.images import scan_labelled
from nolabel.errors import DataError, NumericError, UsageError
from nolabel.evals.classification import classifier, crops
from nolabel.evals.classification.batches import batch_keys
from nolabel.evals.classification.classifier import (
    Plan,
    accuracy,
    lr_at,
    make_optimizer,
    mixed,
    train_classifier,
)
from nolabel.evals.classification.classifier import with_classifier as attach
from nolabel.evals.classification.crops import AugmentedCrops, rand_augment, seeded
from nolabel.evals.classification.finetune import PROTOCOL, columns
from nolabel.evals.classification.finetune_settings import FinetuneConfig, make_plan, published
from nolabel.evals.protocol import format_result, run
from nolabel.networks.backbones import backbone
from nolabel.weights.load import Loaded, load_weights

SMALL = FinetuneConfig(epochs=2, train_batch_size=12, floor=False)


@pytest.fixture(scope="module")
def vit() -> Loaded:
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = backbone("vit_tiny_patch16_224", args)
    net.eval().requires_grad_(False)
    return Loaded(net, 16, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bicubic", "vit", "0123456789abcdef")


def ignore(_step: int, _metrics: Any) -> None:
    """No progress."""


def scales(loaded: Loaded, config: FinetuneConfig) -> dict[str, tuple[float, float]]:
    """lr_scale and weight decay by the name of the parameter."""
    recipe = published(loaded, config).recipe
    net = attach(loaded, 3, recipe)
    names = {id(p): name for name, p in net.model.named_parameters()}
    groups = make_optimizer(net, recipe).param_groups
    found = {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found.keys() == set(names.values())
    return found


def test_layer_decay_of_a_vit_by_formula(vit: Loaded) -> None:
    """Block i of L has decay ** (L - i), the embedding decay ** (L + 1), the head 1 (Bao et al. 2022)."""
    found = scales(vit, FinetuneConfig(layer_decay=0.5))
    assert {name: found[name][0] for name in ("cls_token", "pos_embed", "patch_embed.proj.weight")} == {
        "cls_token": 0.0625,
        "pos_embed": 0.0625,
        "patch_embed.proj.weight": 0.0625,
    }
    assert [found[f"blocks.{i}.attn.qkv.weight"][0] for i in range(3)] == [0.125, 0.25, 0.5]
    assert (found["norm.weight"][0], found["head.weight"][0], found["head.bias"][0]) == (0.5, 1, 1)
    decayed = {name for name, (_, decay) in found.items() if decay}
    assert decayed == {n for n in found if n.endswith(".weight") and "norm" not in n}


def test_layer_decay_of_a_resnet_by_formula(loaded: Loaded) -> None:
    found = scales(loaded, FinetuneConfig(layer_decay=0.5, head_lr=10.0))
    assert found["conv1.weight"][0] == found["bn1.bias"][0] == 0.5**5
    assert [found[f"layer{i}.0.conv1.weight"][0] for i in (1, 2, 3, 4)] == [0.5**4, 0.5**3, 0.25, 0.5]
    assert found["fc.weight"][0] == found["fc.bias"][0] == 10
    assert {decay for _, decay in found.values()} == {1e-4}  # SGD decays everything


def test_the_papers_values(vit: Loaded, loaded: Loaded) -> None:
    """methods.md, B5.3, D6 and C5.7."""
    found = {}
    for width in (384, 768, 1024):
        net = vit._replace(backbone=type(vit.backbone)(vit.backbone.model, vit.backbone.name, vit.backbone.args))
        net.backbone.num_features = width
        paper = published(net, FinetuneConfig())
        found[width] = (paper.epochs, paper.recipe.layer_decay, paper.recipe.drop_path)
    assert found == {384: (200, 0.75, 0.1), 768: (100, 0.65, 0.2), 1024: (50, 0.75, 0.2)}
    paper = published(vit, FinetuneConfig())
    recipe = paper.recipe
    assert (recipe.optimizer, recipe.weight_decay, recipe.randaugment, recipe.mixup) == ("adamw", 0.05, 9, 0.8)
    assert (recipe.cutmix, recipe.label_smoothing) == (1.0, 0.1)
    plan = make_plan(FinetuneConfig(schedule="paper"), paper, 1_281_167, paper.lr)
    assert (plan.batch_size, plan.steps_per_epoch, plan.lr) == (1024, 1251, 0.002)
    assert plan.warmup_steps == 5 * 1251
    paper = published(loaded, FinetuneConfig(schedule="paper"))
    plan = make_plan(FinetuneConfig(schedule="paper"), paper, 2560, paper.lr)
    assert (plan.batch_size, plan.steps, plan.lr, plan.milestones) == (256, 200, 0.01, (120, 160))
    assert [round(lr_at(plan, s), 6) for s in (0, 119, 120, 159, 160, 199)] == [0.01, 0.01, 0.002, 0.002, 4e-4, 4e-4]


def test_the_schedule_follows_the_data(vit: Loaded) -> None:
    paper = published(vit, FinetuneConfig())
    plans = {n: make_plan(FinetuneConfig(), paper, n, 5e-4) for n in (10, 36, 9469, 1_281_167)}
    epochs = {n: (p.steps // p.steps_per_epoch, p.batch_size) for n, p in plans.items()}
    assert epochs == {10: (100, 8), 36: (100, 8), 9469: (21, 512), 1_281_167: (10, 1024)}
    assert plans[36].lr == pytest.approx(5e-4 * (8 / 256) ** 0.5)
    assert plans[9469].warmup_steps == round(2.1 * plans[9469].steps_per_epoch)
    own = make_plan(FinetuneConfig(epochs=3, train_batch_size=6), paper, 7, 1.0)
    assert (own.steps, own.batch_size) == (3, 6)
    assert make_plan(FinetuneConfig(), paper, 7, 1.0).batch_size == 6  # even, as images are mixed in pairs


def test_the_learning_rate_warms_up_and_falls() -> None:
    plan = Plan(steps=20, steps_per_epoch=5, batch_size=4, lr=1.0, min_lr=0.1, warmup_steps=5)
    rates = [lr_at(plan, step) for step in range(20)]
    assert rates[:5] == [0, 0.25, 0.5, 0.75, 1.0]
    assert rates[5] == 1.0 and rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[12] == pytest.approx(0.1 + 0.45 * (1 + np.cos(np.pi * 7 / 15)))


def test_the_head_and_nothing_else_is_new(vit: Loaded, loaded: Loaded) -> None:
    for start in (vit, loaded):
        recipe = published(start, FinetuneConfig(drop_path=0.3)).recipe
        net = attach(start, 5, recipe)
        head = net.model.get_classifier()
        assert head.weight.shape == (5, start.backbone.num_features)
        assert float(head.weight.detach().std()) == pytest.approx(recipe.head_std, rel=0.3)
        assert not head.bias.any()
        own = start.backbone.model.state_dict()
        assert all(torch.equal(value, net.model.state_dict()[name]) for name, value in own.items())
        drops = {m.drop_prob for m in net.model.modules() if type(m).__name__ == "DropPath"}
        assert max(drops) == pytest.approx(0.3)
        assert all(p.requires_grad for p in net.parameters())
        assert not any(p.requires_grad for p in start.backbone.parameters())


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_every_layer_moves_and_the_start_does_not(kind: str, vit: Loaded, loaded: Loaded, splits_folder: Path) -> None:
    start = vit if kind == "vit" else loaded
    before = {name: value.clone() for name, value in start.backbone.model.state_dict().items()}
    config = FinetuneConfig(epochs=1, train_batch_size=12)
    paper, train = published(start, config), scan_labelled(splits_folder)["train"]
    plan = make_plan(config, paper, 36, 0.1)._replace(warmup_steps=0)
    net = train_classifier(start, train, paper.recipe, plan, config, ignore)
    assert all(torch.equal(value, before[name]) for name, value in start.backbone.model.state_dict().items())
    still = [name for name, p in net.model.named_parameters() if name in before and torch.equal(p, before[name])]
    assert still == []
    assert not net.training


def test_mixing_is_a_function_of_seed_and_step(vit: Loaded) -> None:
    recipe = published(vit, FinetuneConfig()).recipe
    x, labels = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    states = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    a, b, c = (mixed(x.clone(), labels, 3, recipe, 0, step) for step in (1, 1, 2))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert not torch.equal(a[0], c[0])
    assert states == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index,union-attr]
    for images, targets in (a, c):
        assert targets.sum(1).tolist() == pytest.approx([1.0] * 8, abs=1e-5)
        assert not torch.equal(images, x)


def test_without_mixing_only_labels_are_smoothed(vit: Loaded) -> None:
    recipe = published(vit, FinetuneConfig(mixup=0, cutmix=0, label_smoothing=0.3)).recipe
    x = torch.randn(3, 3, 8, 8)
    images, targets = mixed(x, torch.tensor([0, 1, 2]), 3, recipe, 0, 0)
    assert torch.equal(images, x)
    assert targets.tolist() == [pytest.approx([0.8 if i == j else 0.1 for j in range(3)]) for i in range(3)]


def test_cutmix_targets_are_the_shares_of_pixels(vit: Loaded) -> None:
    recipe = published(vit, FinetuneConfig(mixup=0, cutmix=1.0, label_smoothing=0)).recipe
    x = torch.arange(4).view(4, 1, 1, 1).expand(4, 3, 10, 10).float()
    images, targets = mixed(x.clone(), torch.arange(4), 4, recipe, 3, 5)
    assert targets[0, 0] == pytest.approx(float((images[0, 0] == 0).float().mean()), abs=1e-5)
    assert targets[0, 3] == pytest.approx(float((images[0, 0] == 3).float().mean()), abs=1e-5)


def test_crops_are_a_function_of_their_key(splits_folder: Path) -> None:
    train = scan_labelled(splits_folder)["train"]
    make = [AugmentedCrops(train, 16, seed, 9.0, (0.5, 0.5, 0.5)) for seed in (0, 0, 1)]
    x, label = make[0][(3, 20)]
    assert (x.shape, x.dtype, label) == ((3, 16, 16), torch.uint8, train.labels[20])
    make[1][(0, 0)]  # what came before does not matter
    assert torch.equal(x, make[1][(3, 20)][0])
    assert not torch.equal(x, make[0][(4, 20)][0]) and not torch.equal(x, make[2][(3, 20)][0])
    plain = AugmentedCrops(train, 16, 0, 0.0, (0.5, 0.5, 0.5))
    changed = [not torch.equal(plain[(0, i)][0], make[0][(0, i)][0]) for i in range(20)]
    assert sum(changed) > 5


def test_rand_augment_at_its_strongest() -> None:
    """Magnitudes vary around the given one and reach 10, where posterize would have no bit left to keep."""
    x = torch.arange(3 * 8 * 8, dtype=torch.uint8).view(3, 8, 8)
    with seeded("fine-tuning crop", 0, 0, 0):
        for _ in range(100):
            assert rand_augment(x, 10.0, (1, 2, 3)).shape == x.shape


def test_rand_augment_changes_an_image_within_its_type() -> None:
    x = torch.arange(3 * 16 * 16).view(3, 16, 16).remainder(256).byte()
    with seeded("fine-tuning crop", 0, 1, 0):
        found = [rand_augment(x, 9.0, (1, 2, 3)) for _ in range(20)]
    assert all(y.shape == x.shape and y.dtype == torch.uint8 for y in found)
    assert sum(not torch.equal(y, x) for y in found) > 5


def test_every_image_once_an_epoch() -> None:
    plan = Plan(steps=6, steps_per_epoch=3, batch_size=2, lr=1, min_lr=0, warmup_steps=0)
    keys = batch_keys(7, plan.steps, plan.steps_per_epoch, plan.batch_size, seed=0)
    for epoch in (0, 1):
        rows = [row for batch in keys[3 * epoch : 3 * epoch + 3] for e, row in batch if e == epoch]
        assert len(set(rows)) == 6
    assert [row for batch in keys[:3] for _, row in batch] != [row for batch in keys[3:] for _, row in batch]


def test_pieces_of_a_batch_give_the_gradients_of_the_whole(vit: Loaded) -> None:
    recipe = published(vit, FinetuneConfig(drop_path=0)).recipe._replace(head_std=0.1)
    x, target = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.eye(3).repeat(2, 1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = attach(vit, 3, recipe)
    grads = []
    for size in (6, 4):
        net.zero_grad()
        classifier._backward(net, x, target, FinetuneConfig(batch_size=size), scaler)
        grads.append([p.grad.clone() for p in net.model.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_average_is_tested_where_it_is_asked_for(loaded: Loaded, splits_folder: Path) -> None:
    train = scan_labelled(splits_folder)["train"]
    nets = []
    for ema in (0.0, 0.9):
        config = FinetuneConfig(epochs=2, train_batch_size=12, ema=ema)
        paper = published(loaded, config)
        plan = make_plan(config, paper, 36, 0.1)
        nets.append(train_classifier(loaded, train, paper.recipe, plan, config, ignore))
    assert not torch.equal(nets[0].model.fc.weight, nets[1].model.fc.weight)
    assert nets[0].model.fc.weight.norm() > nets[1].model.fc.weight.norm()  # the average lags behind


def test_the_result(loaded: Loaded, splits_folder: Path, tmp_path: Path) -> None:
    config = FinetuneConfig(epochs=8, fractions=(0.1, 0.5, 1.0, 0.01), lrs=(0.1,))
    files = [tmp_path / name / "finetune.json" for name in ("a", "b")]
    result = run(PROTOCOL, loaded, splits_folder, config, files[0])
    moved = shutil.copytree(splits_folder, tmp_path / "elsewhere" / "pets")
    run(PROTOCOL, loaded, moved, replace(config, floor=False), files[1])
    again = json.loads(files[1].read_text()) | {"floor": json.loads(json.dumps(result["floor"]))}
    assert again == json.loads(files[0].read_text())
    assert str(tmp_path) not in files[0].read_text()
    assert json.loads(files[0].read_text()) == json.loads(json.dumps(result))
    assert list(result) == ["protocol", "version", "metrics", "floor", "settings", "data", "seed", "notes"]
    metrics = result["metrics"]
    assert {name: row["images"] for name, row in metrics.items()} == {"10 %": 3, "50 %": 18, "100 %": 36}
    assert result["notes"] == ["1 % skipped: 0 images for 3 classes"]
    assert result["floor"]["random_weights"].keys() == metrics.keys()
    assert metrics["100 %"]["top1"] > 60 and metrics["100 %"]["top5"] == 100
    assert result["data"]["reported_on"] == "test"
    assert columns(metrics)["10 % top-1"] == metrics["10 %"]["top1"]
    assert "100 % top-1" in format_result(result, PROTOCOL)
    assert not PROTOCOL.unasked
    assert sorted(p.name for p in (tmp_path / "a" / "finetune").iterdir()) == [
        "10-percent",
        "100-percent",
        "50-percent",
    ]


def test_the_network_that_was_kept_is_the_one_that_was_tested(
    loaded: Loaded, splits_folder: Path, tmp_path: Path
) -> None:
    result = run(PROTOCOL, loaded, splits_folder, SMALL, tmp_path / "finetune.json")
    folder = tmp_path / "finetune" / "100-percent"
    net = type(loaded.backbone)(timm.create_model(f"local-dir:{folder}", pretrained=True).eval(), "resnet18", {})
    found = accuracy(net, loaded, scan_labelled(splits_folder)["test"], SMALL)
    assert found.top1 == result["metrics"]["100 %"]["top1"]
    assert json.loads((folder / "classes.json").read_text()) == ["cat", "dog", "newt"]
    again = load_weights(folder).backbone.model.state_dict()  # without its classifier
    assert torch.equal(again["conv1.weight"], net.model.conv1.weight)


def test_the_rate_is_chosen_on_val_and_never_on_test(
    loaded: Loaded, splits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []
    from nolabel.evals.classification import finetune

    def spy(net: Any, start: Loaded, labelled: Any, config: Any) -> Any:
        seen.append((labelled.images.names[0].split("/")[0], len(labelled.labels)))
        return accuracy(net, start, labelled, config)

    monkeypatch.setattr(finetune, "accuracy", spy)
    config = replace(SMALL, lrs=(1e-9, 0.1))
    result = run(PROTOCOL, loaded, splits_folder, config)
    assert seen == [("val", 15), ("val", 15), ("test", 12)]
    row = result["metrics"]["100 %"]
    assert row["chosen_on"] == "val" and [t["lr"] for t in row["sweep"]] == [1e-9, 0.1]
    assert row["lr"] == max(row["sweep"], key=lambda t: (t["top1"], -t["lr"]))["lr"]
    shutil.rmtree(splits_folder / "val")
    seen.clear()
    result = run(PROTOCOL, loaded, splits_folder, config)
    assert seen == [("train", 3), ("train", 3), ("test", 12)]
    assert (result["metrics"]["100 %"]["chosen_on"], result["metrics"]["100 %"]["images"]) == ("10 % of train", 36)
    with pytest.raises(DataError, match="One image per class leaves none"):
        run(PROTOCOL, loaded, splits_folder, replace(config, fractions=(0.1,)))


def test_lists_and_files_that_cannot_be_read(loaded: Loaded, splits_folder: Path, tmp_path: Path) -> None:
    (splits_folder / "train" / "cat" / "000.png").write_bytes(b"no image")
    names = [f"{c}/{i:03d}.png" for c in ("cat", "dog", "newt") for i in (1, 2)]
    (tmp_path / "few.txt").write_text("\n".join(names))
    config = replace(SMALL, files=(tmp_path / "few.txt",))
    result = run(PROTOCOL, loaded, splits_folder, config)
    assert result["metrics"]["few"]["images"] == 6
    assert result["data"]["splits"]["train"]["unreadable"] == 1
    (tmp_path / "few.txt").write_text("\n".join(names[:4]))
    with pytest.raises(DataError, match="no image of 1 classes of train: newt"):
        run(PROTOCOL, loaded, splits_folder, config)
    (tmp_path / "few.txt").write_text("cat/000.png")
    with pytest.raises(DataError, match="names that train lacks"):
        run(PROTOCOL, loaded, splits_folder, config)


def test_a_loss_that_is_not_finite_stops_it(loaded: Loaded, splits_folder: Path) -> None:
    config = replace(SMALL, lrs=(1e12,), epochs=10)
    with pytest.raises(NumericError, match="lower the learning rate"):
        run(PROTOCOL, loaded, splits_folder, config)


def test_an_image_that_vanishes(splits_folder: Path) -> None:
    train = scan_labelled(splits_folder)["train"]
    (splits_folder / "train" / "cat" / "000.png").unlink()
    with pytest.raises(DataError, match="cannot be read any more"):
        crops.AugmentedCrops(train, 16, 0, 0, (0.5, 0.5, 0.5))[(0, 0)]


@pytest.mark.parametrize(
    "settings",
    [
        {"fractions": ()},
        {"fractions": (0.0,)},
        {"fractions": (2.0,)},
        {"fractions": (1.0, 1.0)},
        {"epochs": 0},
        {"lrs": (0.0,)},
        {"layer_decay": 0.0},
        {"drop_path": 1.0},
        {"randaugment": 11.0},
        {"ema": 1.0},
        {"train_batch_size": 0},
        {"train_batch_size": 7, "mixup": 0.8},
    ],
)
def test_bad_settings(loaded: Loaded, splits_folder: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        run(PROTOCOL, loaded, splits_folder, FinetuneConfig(**settings))


def test_cifar10(loaded: Loaded, data_packs: Path, tmp_path: Path) -> None:
    """A few of the real images, with everything of the recipe on."""
    pack = data_packs / "cifar10" / "cifar10_jpeg.npz"
    if not pack.is_file():
        pytest.skip(f"{pack} is absent")
    with np.load(pack) as arrays:
        for split, count in (("train", 120), ("test", 40)):
            ends, data = arrays[f"{split}_offsets"][: count + 1], arrays[f"{split}_jpeg"]
            for i, label in enumerate(arrays[f"{split}_labels"][:count]):
                path = tmp_path / "cifar" / split / str(label) / f"{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data[ends[i] : ends[i + 1]].tobytes())
    mixing = {"mixup": 0.8, "cutmix": 1.0, "randaugment": 9.0, "drop_path": 0.1, "ema": 0.9}
    config = FinetuneConfig(epochs=2, image_size=32, floor=False, optimizer="adamw", layer_decay=0.8, **mixing)
    result = run(PROTOCOL, loaded, tmp_path / "cifar", config)
    assert result["data"]["num_classes"] == 10
    assert 0 <= result["metrics"]["100 %"]["top1"] <= result["metrics"]["100 %"]["top5"] <= 100
    assert result == run(PROTOCOL, loaded, tmp_path / "cifar", replace(config, workers=1))
