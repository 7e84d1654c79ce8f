"""The linear protocol end to end: what is learned from, what is chosen on, what is reported; the result file."""

import json
import math
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from nolabel.data.images import scan_labelled
from nolabel.errors import DataError, UsageError
from nolabel.evals.classification import augmented, lowshot
from nolabel.evals.classification.augmented import augmented_batches, train_view
from nolabel.evals.classification.linear import LRS, PROTOCOL, LinearConfig, _plan, columns
from nolabel.evals.classification.probes import Plan
from nolabel.evals.classification.sweep import Probe, Samples, sweep
from nolabel.evals.protocol import format_result, run
from nolabel.evals.shared.cache import features
from nolabel.evals.shared.pieces import POOLED, Layout, pieces_of
from nolabel.networks.backbones import backbone
from nolabel.weights.load import Loaded

SMALL = LinearConfig(lrs=(0.01, 1.0), epochs=10, floor=False)


@pytest.fixture(scope="module")
def vit() -> Loaded:
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = backbone("vit_tiny_patch16_224", args)
    net.eval().requires_grad_(False)
    return Loaded(net, 16, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bicubic", "vit", "0123456789abcdef")


def test_the_result(loaded: Loaded, splits_folder: Path, tmp_path: Path) -> None:
    config = LinearConfig(lrs=(0.01, 1.0), epochs=10)
    files = [tmp_path / name / "linear.json" for name in ("a", "b")]
    result = run(PROTOCOL, loaded, splits_folder, config, files[0])
    moved = shutil.copytree(splits_folder, tmp_path / "elsewhere" / "pets")
    run(PROTOCOL, loaded, moved, config, files[1])
    assert files[0].read_bytes() == files[1].read_bytes()
    assert str(tmp_path) not in files[0].read_text()
    assert json.loads(files[0].read_text()) == json.loads(json.dumps(result))
    assert list(result) == ["protocol", "version", "metrics", "floor", "settings", "data", "seed", "notes"]
    metrics = result["metrics"]
    assert (metrics["chosen_on"], metrics["retrained"], result["data"]["reported_on"]) == ("val", False, "test")
    assert [(t["blocks"], t["lr"]) for t in metrics["sweep"]] == [(1, 0.01), (1, 1.0)]
    assert result["floor"].keys() == {"raw_pixels", "random_weights"}
    assert all(0 <= values["top1"] <= values["top5"] <= 100 for values in [metrics, *result["floor"].values()])
    assert metrics["top1"] > 60  # of three classes, by their colour
    assert metrics["top5"] == 100
    assert result["settings"]["head_batch_size"] == 8
    assert not any("blocks" in note for note in result["notes"])  # nobody asked for them
    table = format_result(result, PROTOCOL)
    assert "raw pixels" in table and "top-1" in table and "lr" in table


def test_the_classifier_is_kept(loaded: Loaded, splits_folder: Path, tmp_path: Path) -> None:
    result = run(PROTOCOL, loaded, splits_folder, SMALL, tmp_path / "linear.json")
    with safe_open(tmp_path / "linear" / "head.safetensors", "pt") as file:
        weight, bias, facts = file.get_tensor("weight"), file.get_tensor("bias"), file.metadata()
    test = features(loaded, scan_labelled(splits_folder)["test"], [POOLED], SMALL, None).table([POOLED])
    predicted = (test.features @ weight.T + bias).argmax(1)
    assert result["metrics"]["top1"] == pytest.approx(100 * float((predicted == test.labels).double().mean()), abs=1e-4)
    assert json.loads(facts["classes"]) == ["cat", "dog", "newt"]
    assert (facts["head"], facts["blocks"], facts["mean_patches"]) == ("plain", "1", "False")


def test_val_alone_is_reported_and_a_tenth_of_train_decides(loaded: Loaded, splits_folder: Path) -> None:
    shutil.rmtree(splits_folder / "test")
    result = run(PROTOCOL, loaded, splits_folder, SMALL)
    assert (result["metrics"]["chosen_on"], result["metrics"]["retrained"]) == ("10 % of train", True)
    assert result["data"]["reported_on"] == "val"


def test_layouts_of_a_vit(vit: Loaded, splits_folder: Path) -> None:
    config = LinearConfig(lrs=(0.1,), epochs=2, floor=False, blocks=(1, 2, 4), mean_patches="both")
    result = run(PROTOCOL, vit, splits_folder, config)
    tried = [(t["blocks"], t["mean_patches"]) for t in result["metrics"]["sweep"]]
    assert tried == [(n, mean) for n in (1, 2, 3) for mean in (False, True)]
    assert "blocks above 3" in result["notes"][0]
    assert "+p" in "".join(str(columns({**t, "top1": 1, "top5": 1})["blocks"]) for t in result["metrics"]["sweep"])


@pytest.mark.parametrize("head", ["batchnorm", "layernorm_l2"])
def test_other_heads(head: str, vit: Loaded, loaded: Loaded, splits_folder: Path, tmp_path: Path) -> None:
    config = LinearConfig(head=head, blocks=(1,), lrs=(1.0, 30.0), epochs=20, floor=False)  # type: ignore[arg-type]
    for net in (vit, loaded):
        result = run(PROTOCOL, net, splits_folder, config, tmp_path / "linear.json")
        raw = head == "layernorm_l2" and net is vit
        assert result["settings"]["features"] == ("before the final norm" if raw else "final")
        assert result["metrics"]["top1"] > 33
    with safe_open(tmp_path / "linear" / "head.safetensors", "pt") as file:
        names = set(file.keys())
    more = {"norm.running_mean", "norm.running_var"} if head == "batchnorm" else {"gain", "shift"}
    assert names == {"weight", "bias"} | more


def test_interleaved_is_another_order_of_the_same(vit: Loaded, splits_folder: Path) -> None:
    """The start is random by position, so the numbers differ a little, and the width is that of both."""
    config = LinearConfig(blocks=(1,), mean_patches="yes", lrs=(0.1,), epochs=2, floor=False, interleaved=True)
    assert run(PROTOCOL, vit, splits_folder, config)["settings"]["interleaved"] is True
    for wrong in (LinearConfig(interleaved=True), LinearConfig(blocks=(1, 4), mean_patches="yes", interleaved=True)):
        with pytest.raises(UsageError, match="--blocks 1 --mean-patches yes"):
            run(PROTOCOL, vit, splits_folder, wrong)


def test_augmented(vit: Loaded, splits_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every epoch sees other crops, all layouts the same ones, and bad files nobody."""
    bad = scan_labelled(splits_folder)["train"].images
    Path(bad.root, bad.names[0]).write_bytes(b"")
    seen: list[str] = []
    original = augmented.read
    monkeypatch.setattr(augmented, "read", lambda images, i: (seen.append(images.names[i]), original(images, i))[1])
    config = LinearConfig(augment=True, lrs=(0.1, 1.0), blocks=(1, 2), epochs=2, head_batch_size=7, floor=False)
    first, again = (run(PROTOCOL, vit, splits_folder, config) for _ in range(2))
    assert first == again
    assert len(seen) == 2 * 2 * 35 and bad.names[0] not in seen
    plain = run(PROTOCOL, vit, splits_folder, LinearConfig(lrs=(0.1, 1.0), blocks=(1, 2), epochs=2, floor=False))
    assert plain["metrics"]["sweep"] != first["metrics"]["sweep"]


def test_augmented_batches(vit: Loaded, splits_folder: Path) -> None:
    labelled = scan_labelled(splits_folder)["train"]
    layouts = {layout: pieces_of(vit.backbone, layout) for layout in (Layout(1), Layout(2))}
    plan = Plan("plain", steps=4, steps_per_epoch=2, batch_size=18, seed=5)
    arguments = labelled, train_view(16, "bilinear"), layouts, False

    def batches(**settings: int) -> list[tuple[dict[Layout, torch.Tensor], torch.Tensor]]:
        return list(augmented_batches(vit, *arguments, LinearConfig(**settings), plan))  # type: ignore[arg-type]

    state = torch.get_rng_state()
    found = batches()
    assert torch.equal(torch.get_rng_state(), state)
    assert [x[Layout(2)].shape for x, _ in found] == [(18, 48)] * 4
    assert all(torch.equal(x[Layout(2)][:, 24:], x[Layout(1)]) for x, _ in found)
    for start in (0, 2):
        assert torch.cat([y for _, y in found[start : start + 2]]).bincount().tolist() == [12, 12, 12]
    for again in (batches(workers=1), batches(batch_size=18)):
        assert all(torch.equal(a[1], b[1]) for a, b in zip(found, again, strict=True))
        for a, b in zip(found, again, strict=True):
            torch.testing.assert_close(a[0][Layout(1)], b[0][Layout(1)])
    means = [torch.cat([x[Layout(1)] for x, _ in found[i : i + 2]]).mean(0) for i in (0, 2)]
    assert not torch.allclose(*means)  # the same images, other crops


@pytest.mark.parametrize(
    ("num_images", "changes", "expected"),
    [
        (36, {}, (8, 4, 1000)),  # steps: at least a thousand
        (2000, {}, (64, 31, 3100)),  # a hundred epochs
        (9469, {}, (512, 18, 1800)),
        (1_281_167, {}, (1024, 1251, 11259)),  # nine epochs
        (1_281_167, {"schedule": "paper"}, (1024, 1251, 125100)),
        (1_281_167, {"schedule": "paper", "head": "batchnorm"}, (16384, 78, 7020)),
        (500, {"schedule": "paper"}, (500, 1, 100)),
        (9469, {"augment": True}, (512, 18, 21 * 18)),
        (9469, {"epochs": 3, "head_batch_size": 100}, (100, 94, 282)),
    ],
)
def test_the_schedule(num_images: int, changes: dict[str, object], expected: tuple[int, int, int]) -> None:
    plan = _plan(LinearConfig(**changes), num_images)  # type: ignore[arg-type]
    assert (plan.batch_size, plan.steps_per_epoch, plan.steps) == expected
    assert plan.by_epoch == (changes == {"schedule": "paper"})


def test_the_warmup() -> None:
    plan = _plan(LinearConfig(head="batchnorm", schedule="paper"), 1_281_167)
    assert plan.warmup_steps == 10 * 78
    assert _plan(LinearConfig(head="batchnorm", epochs=5), 2000).warmup_steps == round(0.5 * 31)


def test_the_defaults_are_twelve_rates_and_two_layouts() -> None:
    assert len(LRS) == 12 and list(LRS) == sorted(LRS)
    assert len(LinearConfig().blocks) == 2


def test_what_cannot_be_measured(loaded: Loaded, splits_folder: Path) -> None:
    with pytest.raises(DataError, match="Expected train/ with val/ or test/"):
        run(PROTOCOL, loaded, splits_folder / "train", SMALL)
    for settings, message in (
        ({"lrs": (0.0,)}, "above 0"),
        ({"lrs": (math.nan,)}, "above 0"),
        ({"blocks": (0,)}, "from 1 up"),
        ({"blocks": ()}, "from 1 up"),
        ({"head": "plane"}, "Did you mean: plain"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"head_batch_size": 0}, "head_batch_size must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            run(PROTOCOL, loaded, splits_folder, LinearConfig(**settings))  # type: ignore[arg-type]
    shutil.rmtree(splits_folder / "train" / "newt")
    with pytest.raises(DataError, match=r"Classes in .* without a readable image in train: newt"):
        run(PROTOCOL, loaded, splits_folder, SMALL)


def test_the_end_of_the_sweep_is_pointed_out(loaded: Loaded, splits_folder: Path) -> None:
    """The floors, too: one that is too low flatters the network."""
    result = run(PROTOCOL, loaded, splits_folder, LinearConfig(lrs=(1e-9, 0.1), epochs=10))
    assert "the network: the best learning rate, 0.1, is the highest of the sweep" in result["notes"][0]
    assert result["notes"][1].startswith("raw pixels: the best learning rate")


def test_the_default_sweep_holds_the_best_of_an_untrained_network() -> None:
    """Its features hardly differ, here by a thousandth: the rates of trained networks do nothing to them."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    x = 1 + 0.001 * torch.randn(300, 8, generator=rng) + 0.002 * F.one_hot(labels, 8)
    ids = tuple(f"{i:03}" for i in range(300))
    train, test = (
        Samples({Layout(): x[rows]}, labels[rows], ids[rows.start : rows.stop])
        for rows in (slice(0, 200), slice(200, 300))
    )
    best = sweep(Probe(train, None, test, 3), (Layout(),), LRS, partial(_plan, LinearConfig()))
    tops = [t["top1"] for t in best.tried]
    assert max(tops[:8]) < 50 < best.top1
    assert best.lr not in (LRS[0], LRS[-1])


def test_cifar10(loaded: Loaded, data_packs: Path, tmp_path: Path) -> None:
    """400 and 200 real images: pixels give about 30 % of ten classes; one label per class gives less than ten."""
    pack = data_packs / "cifar10" / "cifar10_jpeg.npz"
    if not pack.is_file():
        pytest.skip(f"{pack} is absent")
    arrays = np.load(pack)
    for split, count in (("train", 400), ("test", 200)):  # any prefix of the pack is balanced
        ends, data = arrays[f"{split}_offsets"][: count + 1], arrays[f"{split}_jpeg"]
        for i in range(count):
            folder = tmp_path / split / str(arrays["class_names"][arrays[f"{split}_labels"][i]])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i:05d}.jpg").write_bytes(data[ends[i] : ends[i + 1]].tobytes())
    result = run(PROTOCOL, loaded, tmp_path, LinearConfig(lrs=(0.001, 0.01, 0.1), epochs=20))
    assert 20 < result["floor"]["raw_pixels"]["top1"] < 40
    assert 12 < result["metrics"]["top1"] < 40
    shots = run(
        lowshot.PROTOCOL, loaded, tmp_path, lowshot.LowshotConfig(shots=(1, 20), fractions=(), strengths=(1.0,))
    )
    few, many = (shots["floor"]["raw_pixels"][name]["top1"] for name in ("1 img", "20 img"))
    assert 8 < few < many < 40
