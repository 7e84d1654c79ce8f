"""Checkpoints: what is damaged is never used, what is good comes back bit for bit, old ones are purged."""

import json
import os
import random
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from nolabel.errors import StorageError
from nolabel.optim.optimizers import OptimConfig, optimizer
from nolabel.optim.state import optimizer_tensors, restore_optimizer
from nolabel.runs import checkpoint
from nolabel.runs.checkpoint import Checkpoint, keep_newest, load_newest, save, verify

FILES = ["manifest.json", "model.safetensors", "optim.safetensors", "state.json"]


def of(step: int) -> Checkpoint:
    """Something to save that differs from step to step."""
    generator = torch.Generator().manual_seed(step)
    model = {"a": torch.randn(3, 4, generator=generator), "b": torch.arange(step + 1), "half": torch.ones(2).bfloat16()}
    return Checkpoint(model, {"a/step": torch.tensor(float(step))}, {"step": step, "window": [{"loss": 0.1}]})


def same(a: Checkpoint | None, b: Checkpoint) -> bool:
    assert a is not None
    tensors = all(
        x.keys() == y.keys() and all(torch.equal(x[k], y[k]) and x[k].dtype == y[k].dtype for k in x)
        for x, y in ((a.model, b.model), (a.optim, b.optim))
    )
    return tensors and a.state == b.state


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of steps 10 and 20."""
    for step in (10, 20):
        save(tmp_path / "checkpoints", step, of(step), keep=3)
    return tmp_path / "checkpoints"


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_newest_comes_back_bit_for_bit(folder: Path) -> None:
    found, damaged = load_newest(folder)
    assert same(found, of(20)) and not damaged
    assert names(folder / "step-00000020") == FILES
    assert all(b"\x80\x04" not in f.read_bytes()[:8] for f in (folder / "step-00000020").iterdir())  # no pickle


def test_nothing_saved_gives_nothing(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "none") == (None, [])
    save(tmp_path, 0, Checkpoint({}, {}, {}), keep=1)  # a fresh optimizer has no state
    assert same(load_newest(tmp_path)[0], Checkpoint({}, {}, {}))


def test_steps_are_compared_as_numbers(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        save(tmp_path, step, Checkpoint({}, {}, {"step": step}), keep=2)
    found, _ = load_newest(tmp_path)
    assert found is not None and found.state["step"] == 100_000_000


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage", ["flip first", "flip middle", "flip last", "cut", "empty", "longer", "missing", "folder"]
)
def test_any_damage_is_found_set_aside_and_the_one_before_used(folder: Path, name: str, damage: str) -> None:
    file = folder / "step-00000020" / name
    data = bytearray(file.read_bytes())
    if damage.startswith("flip"):
        data[{"first": 0, "middle": len(data) // 2, "last": -2}[damage.removeprefix("flip ")]] ^= 0x10
    changed = {"cut": data[: len(data) // 2], "empty": b"", "longer": data + b"x"}.get(damage, data)
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage != "missing":
        file.write_bytes(changed)
    found, damaged = load_newest(folder)
    assert same(found, of(10))
    assert len(damaged) == 1 and "step-00000020 is damaged" in damaged[0]
    assert names(folder) == ["step-00000010", "step-00000020.corrupt"]
    assert load_newest(folder)[1] == []  # what was set aside is not looked at again


def test_every_single_bit_of_the_tensors_is_covered(tmp_path: Path) -> None:
    path = save(tmp_path, 1, Checkpoint({"a": torch.ones(2)}, {}, {}), keep=1)
    assert verify(path) is None
    file = path / "model.safetensors"
    data = file.read_bytes()
    for i in range(8 * len(data)):
        changed = bytearray(data)
        changed[i // 8] ^= 1 << i % 8
        file.write_bytes(changed)
        assert verify(path) is not None, f"bit {i}"


def test_all_damaged_gives_nothing_and_reports_both(folder: Path) -> None:
    for step in (10, 20):
        (folder / f"step-000000{step}" / "state.json").unlink()
    found, damaged = load_newest(folder)
    assert found is None and len(damaged) == 2


def test_damage_again_at_the_same_step(folder: Path) -> None:
    for _ in range(2):
        (folder / "step-00000020" / "state.json").write_text("{}")
        assert same(load_newest(folder)[0], of(10))
        save(folder, 20, of(20), keep=3)
    assert same(load_newest(folder)[0], of(20))


def test_a_newer_format_is_not_guessed_at(folder: Path) -> None:
    file = folder / "step-00000020" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))
    assert verify(file.parent) == "format 2, this nolabel reads 1"


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step, of(step), keep=3)
    assert names(tmp_path) == [f"step-0000000{s}" for s in (5, 6, 7)]


def test_debris_of_a_killed_save_is_removed_and_never_read(folder: Path) -> None:
    shutil.copytree(folder / "step-00000020", folder / ".tmp-1-30")
    assert same(load_newest(folder)[0], of(20))
    save(folder, 30, of(30), keep=3)
    assert names(folder) == [f"step-000000{s}" for s in (10, 20, 30)]


def test_strange_neighbours_are_left_alone(folder: Path) -> None:
    (folder / "step-notes").mkdir()
    (folder / "step-00000099").write_text("a file")
    assert same(load_newest(folder)[0], of(20))
    save(folder, 30, of(30), keep=1)
    assert names(folder) == ["step-00000020", "step-00000030", "step-00000099", "step-notes"]


@pytest.mark.parametrize("when", ["_flush", "save_file"])
def test_a_full_disk_keeps_the_old_checkpoints(folder: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, when, full)
    with pytest.raises(StorageError, match=r"step 30 could not be written.*No space left"):
        save(folder, 30, of(30), keep=1)
    assert names(folder) == ["step-00000010", "step-00000020"]
    assert same(load_newest(folder)[0], of(20))


def test_saving_a_step_again_replaces_it(folder: Path) -> None:
    save(folder, 20, of(21)._replace(state={"step": 20}), keep=3)
    found, _ = load_newest(folder)
    assert found is not None and len(found.model["b"]) == 22
    assert names(folder) == ["step-00000010", "step-00000020"]


def damaged_copy(folder: Path, name: str, data: bytes | None) -> None:
    """Give step 20 the file `name` with other content, or take it away."""
    path = folder / "step-00000020" / name
    path.unlink()
    if data is not None:
        path.write_bytes(data)


def test_random_damage_is_always_found(folder: Path) -> None:
    """100 flipped bits, 20 cuts, zero length, a missing member: every one is seen, and step 10 is used."""
    choice = random.Random(0)
    healthy = {name: (folder / "step-00000020" / name).read_bytes() for name in FILES}
    cases: list[tuple[str, bytes | None]] = []
    for _ in range(100):
        name = choice.choice(FILES)
        data = bytearray(healthy[name])
        data[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
        cases.append((name, bytes(data)))
    for _ in range(20):
        name = choice.choice(FILES)
        cases.append((name, healthy[name][: choice.randrange(len(healthy[name]))]))
    cases += [(name, data) for name in FILES for data in (b"", None)]
    for name, changed in cases:
        damaged_copy(folder, name, changed)
        assert same(load_newest(folder)[0], of(10)), f"{name} {changed!r}"
        assert names(folder) == ["step-00000010", "step-00000020.corrupt"]
        (folder / "step-00000020.corrupt").rename(folder / "step-00000020")
        (folder / "step-00000020" / name).write_bytes(healthy[name])
        assert verify(folder / "step-00000020") is None


def test_a_manifest_of_another_step_is_found(folder: Path) -> None:
    shutil.copytree(folder / "step-00000010", folder / "step-00000030")
    found, damaged = load_newest(folder)
    assert same(found, of(20)) and "its manifest is that of step 10" in damaged[0]
    shutil.copy(folder / "step-00000010" / "manifest.json", folder / "step-00000020" / "manifest.json")
    assert same(load_newest(folder)[0], of(10))


def test_a_manifest_that_is_no_manifest(folder: Path) -> None:
    for text in ("", "null", "[]", "{}", "[" * 100_000, '{"format": 1, "step": 20, "files": 3}', "\udcff"):
        (folder / "step-00000020" / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        assert verify(folder / "step-00000020") is not None


def test_what_is_read_back_must_be_what_was_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flush = checkpoint._flush

    def spoil(temporary: Path) -> None:
        flush(temporary)
        (temporary / "optim.safetensors").write_bytes(b"")

    monkeypatch.setattr(checkpoint, "_flush", spoil)
    with pytest.raises(StorageError, match=r"what was read back differs: optim.safetensors has changed"):
        save(folder, 30, of(30), keep=1)
    monkeypatch.undo()
    assert same(load_newest(folder)[0], of(20))
    save(folder, 30, of(30), keep=3)
    assert names(folder) == ["step-00000010", "step-00000020", "step-00000030"]


def test_a_damaged_one_takes_nobodys_place(folder: Path) -> None:
    (folder / "step-00000020" / "state.json").write_text("{}")
    save(folder, 30, of(30), keep=2)
    assert names(folder) == ["step-00000010", "step-00000020", "step-00000030"]
    save(folder, 40, of(40), keep=2)
    assert names(folder) == ["step-00000030", "step-00000040"]


@pytest.mark.parametrize("links", [True, False])
def test_a_kept_one_is_never_purged(folder: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(1, "no links here")

    if not links:
        monkeypatch.setattr(os, "link", none)
    assert keep_newest(folder, 9) is None
    assert keep_newest(folder, 10) == keep_newest(folder, 19) == folder / "kept-00000010"
    (folder / "step-00000020" / "state.json").write_text("damaged")
    assert keep_newest(folder, 25) == folder / "kept-00000010", "a damaged one is none"
    for step in (30, 40):
        save(folder, step, of(step), keep=2)
    assert names(folder) == ["kept-00000010", "step-00000030", "step-00000040"]
    shutil.rmtree(folder / "step-00000030")
    shutil.rmtree(folder / "step-00000040")
    (folder / "kept-00000010").rename(folder / "step-00000010")  # how to go back to it
    assert same(load_newest(folder)[0], of(10))
    assert keep_newest(folder, 10) == folder / "kept-00000010"
    save(folder, 20, of(20), keep=2)
    keep_newest(folder, 99)
    assert names(folder) == ["kept-00000020", "step-00000010", "step-00000020"]


def test_others_may_read_it_as_the_umask_allows(tmp_path: Path) -> None:
    for mask, mode in ((0o022, 0o644), (0o002, 0o664), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            path = save(tmp_path / str(mask), 1, of(1), keep=1)
        finally:
            os.umask(before)
        assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {mode}


def test_a_disk_that_is_really_full(folder: Path) -> None:
    """Files of this process may not grow beyond 4 kB: safetensors then fails in its own way, deep inside."""
    big = of(30)._replace(model={"a": torch.zeros(10_000)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"step 30 could not be written"):
            save(folder, 30, big, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert names(folder) == ["step-00000010", "step-00000020"], "its own debris is gone: it would fill the disk"


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_the_optimizer_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Saved after two steps, loaded into fresh objects: the third step is the same. One layer never had a gradient."""

    def fresh(seed: int) -> tuple[nn.Sequential, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 3))
        opt = optimizer(net, OptimConfig(name=name))  # type: ignore[arg-type]
        for group in opt.param_groups:
            group["lr"], group["weight_decay"] = 0.1, 0.05
        return net, opt

    def step(net: nn.Sequential, opt: torch.optim.Optimizer, seed: int) -> None:
        opt.zero_grad()
        net[0](torch.randn(2, 4, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
        opt.step()

    net, opt = fresh(0)
    step(net, opt, 1)
    step(net, opt, 2)
    tensors = optimizer_tensors(opt, net)
    assert {key.split("/")[0] for key in tensors if tensors[key].any()} == {"0.weight", "0.bias"}
    save(tmp_path, 2, Checkpoint(net.state_dict(), tensors, {}), keep=1)

    other, other_opt = fresh(7)
    step(other, other_opt, 7)
    found, _ = load_newest(tmp_path)
    assert found is not None
    other.load_state_dict(found.model)
    restore_optimizer(other_opt, other, found.optim)
    forgetful, forgetful_opt = fresh(8)
    forgetful.load_state_dict(found.model)
    for n, o in ((net, opt), (other, other_opt), (forgetful, forgetful_opt)):
        step(n, o, 3)
    assert not torch.equal(net[0].weight, forgetful[0].weight), "else the optimizer's state would not show"
    assert all(torch.equal(net.state_dict()[k], v) for k, v in other.state_dict().items())
    after, other_after = optimizer_tensors(opt, net), optimizer_tensors(other_opt, other)
    assert after.keys() == other_after.keys() and all(torch.equal(after[k], other_after[k]) for k in after)


def test_strangers_folders_are_no_debris(folder: Path) -> None:
    mine = [".tmp-thesis", ".tmp-step-best", ".tmp-0123456789abcdef-copy"]
    own = [".tmp-0123456789abcdef-7", ".tmp-step-00000004", ".tmp-0123456789abcdef-step-00000004.old"]
    for name in (*mine, *own):
        (folder / name).mkdir()
    save(folder, 9, of(9), keep=2)
    assert sorted(name for name in os.listdir(folder) if name.startswith(".tmp-")) == sorted(mine)


def test_the_name_of_a_deletion_cannot_be_guessed(folder: Path) -> None:
    oldest = names(folder)[0]
    (folder / f".tmp-{oldest}").mkdir()
    checkpoint._delete(folder / oldest)
    assert not (folder / oldest).exists() and (folder / f".tmp-{oldest}").is_dir()
