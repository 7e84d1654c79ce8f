"""Files from strangers run nothing and write nothing; the source has no call with which they could."""

import ast
import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from nolabel.config import load, read_yaml
from nolabel.data.images import read, scan
from nolabel.errors import DataError, NolabelError, UsageError
from nolabel.runs.checkpoint import Checkpoint, load_newest, save
from nolabel.weights.load import load_weights

SOURCE = Path(__file__).parents[2] / "src" / "nolabel"
ALLOWED = {  # the one place of each
    ("weights/pickled.py", "import pickle"),  # an Unpickler that looks up no class
    ("weights/pickled.py", "torch.load(path, map_location='cpu', weights_only=True)"),
    ("recipes/__init__.py", "from importlib import import_module"),  # of its own folder
    ("files.py", "yaml.load(data.decode('utf-8'), Loader=_StrictLoader)"),
    ("__init__.py", "importlib.import_module(_HOMES[name])"),  # a table of four names
}
MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "joblib",
    "subprocess",
    "pty",
    "imp",
    "runpy",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
METHODS = {
    "torch": {"load"}, "yaml": {"load", "load_all", "unsafe_load", "full_load"}, "os": {"system", "popen", "execv"},
    "importlib": {"import_module"}, "code": {"interact"},
}  # fmt: skip


def dangers(source: str) -> list[str]:
    """The imports and calls of a file that run code out of data, as they stand there."""
    found = []
    for node in ast.walk(ast.parse(source)):
        bad = False
        if isinstance(node, ast.Import):
            bad = any(alias.name.split(".")[0] in MODULES for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = METHODS.get(node.module or "", set())
            bad = (node.module or "").split(".")[0] in MODULES or any(alias.name in names for alias in node.names)
        elif isinstance(node, ast.Call):
            call = node.func
            if isinstance(call, ast.Name):
                bad = call.id in BUILTINS
            elif isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name):
                bad = call.attr in METHODS.get(call.value.id, set())
            bad |= any(k.arg in ("shell", "allow_pickle") and ast.unparse(k.value) != "False" for k in node.keywords)
            bad |= any(k.arg == "weights_only" and ast.unparse(k.value) != "True" for k in node.keywords)
        if bad:
            found.append(ast.unparse(node))
    return found


def test_the_source_runs_no_data() -> None:
    found = {
        (path.relative_to(SOURCE).as_posix(), danger)
        for path in sorted(SOURCE.rglob("*.py"))
        for danger in dangers(path.read_text(encoding="utf-8"))
    }
    assert found == ALLOWED


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "import pickle as p", "from marshal import loads", "from torch import load",
        "import subprocess",
        "torch.load('x')", "torch.load('x', weights_only=False)", "yaml.load('x')", "yaml.unsafe_load('x')",
        "eval('x')",
        "exec('x')", "__import__('x')", "importlib.import_module(x)", "os.system('x')", "run('x', shell=True)",
        "np.load('x', allow_pickle=True)", "load(x, weights_only=flag)",
    ],
)  # fmt: skip
def test_the_gate_sees(line: str) -> None:
    assert dangers(line)


@pytest.mark.parametrize("line", ["model.eval()", "re.compile('x')", "json.load(f)", "np.savez(f, allow_pickle=False)"])
def test_the_gate_lets_pass(line: str) -> None:
    assert not dangers(line)


# ---- weights


class Calls:
    """Pickles to a call."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


def exploits(canary: Path) -> dict[str, bytes]:
    """Weight files that would make the folder `canary` if anything in them ran."""
    code = f"__import__('os').mkdir({str(canary)!r})"
    calls = {
        "mkdir": Calls(os.mkdir, str(canary)),
        "system": Calls(os.system, f"mkdir {canary}"),
        "exec": Calls(exec, code),
        "eval": Calls(eval, code),
        "import": Calls(__import__, "this"),
        "getattr": Calls(getattr, "x", "__class__"),
        "nested": {"a": torch.zeros(1), "b": [Calls(os.mkdir, str(canary))]},
        "rebuild": Calls(torch._utils._rebuild_tensor_v2, Calls(os.mkdir, str(canary)), 0, (1,), (1,), False, {}),
        "hub": Calls(torch.hub.load, str(canary.parent), "evil"),
        "load": Calls(torch.load, str(canary.parent / "second.pth")),
    }
    found = {f"{name} plain": pickle.dumps(call, 2) for name, call in calls.items()}
    for name, call in calls.items():
        path = canary.parent / "made.pth"
        torch.save({"state_dict": call}, path)
        found[f"{name} zip"] = path.read_bytes()
        path.unlink()
    torch.save(Calls(os.mkdir, str(canary)), canary.parent / "old", _use_new_zipfile_serialization=False)
    found["old format"] = (canary.parent / "old").read_bytes()
    return found


def test_exploits_in_weights_are_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    files = exploits(canary)
    assert len(files) >= 15
    pickle.loads(files["mkdir plain"])
    canary.rmdir()  # it works where pickle is asked
    for name, data in files.items():
        for suffix, allow in ((".pth", True), (".pth", False), (".safetensors", False)):
            path = tmp_path / f"evil{suffix}"
            path.write_bytes(data)
            with pytest.raises((DataError, UsageError)) as caught:
                load_weights(path, "test_vit", allow_pth=allow)
            assert len(str(caught.value).splitlines()) <= 5
            assert not canary.exists(), name


def safetensors_file(header: bytes, data: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header + data


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0" * 8, safetensors_file(b"{}", size=2**40), safetensors_file(b"{}", size=2**63),
        safetensors_file(b"{"),
        safetensors_file(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
        safetensors_file(b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,16]}}', bytes(16)),
        safetensors_file(b'{"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}', bytes(16)),
        safetensors_file(b'{"a":{"dtype":"X99","shape":[4],"data_offsets":[0,16]}}', bytes(16)),
        safetensors_file(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}', bytes(16)),
        safetensors_file(b'{"a":' * 2000), safetensors_file(b'"\\ud800"'),
    ],
)  # fmt: skip
def test_odd_safetensors_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "odd.safetensors").write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        load_weights(tmp_path / "odd.safetensors", "test_vit")


def test_a_pickle_in_a_checkpoint_is_damage(tmp_path: Path) -> None:
    save(tmp_path, 1, Checkpoint({"a": torch.ones(1)}, {}, {}), keep=2)
    torch.save(Calls(os.mkdir, str(tmp_path / "canary")), tmp_path / "step-00000001" / "model.safetensors")
    assert load_newest(tmp_path)[0] is None
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "vit.__class__", "os.system", "random:os", "x\0y", "a" * 5000])
def test_a_config_names_no_code(name: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    for text in (f'{{"architecture": "{name}"}}', '{"architecture": ["x"]}', "[]", "null", "[" * 9000):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(NolabelError):
            load_weights(tmp_path)


# ---- settings


DEEP = "a: " + "[" * 5000 + "]" * 5000
LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
)
SETTINGS = [
    "!!python/object/apply:os.system ['mkdir CANARY']", "a: !!python/object/apply:os.mkdir ['CANARY']",
    "a: !!python/object/new:os.system ['mkdir CANARY']", "a: !!python/name:os.system", "a: !!python/module:os",
    "a: !!python/object:nolabel.training.job.Job {}", "a: !<tag:yaml.org,2002:python/object/apply:os.mkdir> ['CANARY']",
    "a: !include /etc/passwd", "a: !ENV ${HOME}", "a: !!binary x", "a: 2024-99-99", "? [1]\n: 2", "? {a: 1}\n: 2",
    "a: 1\na: 2", "a: \0", "a: " + "9" * 5000, "a: 0x" + "f" * 5000, DEEP, LAUGHS, "<<: 3", "a: [1",
    "\ufeff\ufeffa", "{" * 999,
]  # fmt: skip


@pytest.mark.parametrize("text", SETTINGS, ids=range(len(SETTINGS)))
def test_hostile_settings_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text.replace("CANARY", str(tmp_path / "canary")), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        load.from_mapping(read_yaml(path), str(path))
    assert len(str(caught.value).splitlines()) <= 5 and len(str(caught.value)) < 2000
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "line",
    [
        "epochs: 1e999", "epochs: 2024-01-01", "seed: no", "batch_size: 0o10", "batch_size: 1_0.5",
        "backbone: 12:30:45",
        "optim: {lr: .inf}", "optim: {lr: .nan}", "__class__: x", "data: [a]", "out: {a: 1}", "method: os.system",
        "method_name: os", "method_name: [dino]", "workers: ${HOME}", "optim: {lr: 1e400}",
    ],
)  # fmt: skip
def test_surprising_values_are_refused_by_name(line: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(line if line.startswith("method_name") else f"method_name: dino\n{line}")
    with pytest.raises(UsageError):
        load.from_mapping(read_yaml(path), str(path))


# ---- archives


def test_nothing_of_an_archive_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data.zip"
    names = ["../up.jpg", "a/../../up.jpg", "/up.jpg", "..\\up.jpg", "a/b.pkl", "a/pipe:mkdir up.jpg", "C:\\up.jpg"]
    with zipfile.ZipFile(data, "w") as archive:
        for name in [*names, "good.jpg"]:
            archive.writestr(name, pickle.dumps(Calls(os.mkdir, str(tmp_path / "canary"))))
        archive.writestr("zero.jpg", bytes(10**7), zipfile.ZIP_DEFLATED)
    lies = bytearray(data.read_bytes())
    at = lies.rindex(b"PK\x01\x02", 0, lies.rindex(b"zero.jpg"))
    lies[at + 24 : at + 28] = struct.pack("<I", 10)  # it says that it unpacks to ten bytes
    data.write_bytes(lies)
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    images = scan(data)
    assert not {"../up.jpg", "a/../../up.jpg", "/up.jpg", "a/b.pkl"} & set(images.names)
    for index, name in enumerate(images.names):
        if name == "zero.jpg":
            with pytest.raises(Exception, match=r"unreadable|CRC"):
                read(images, index)
        else:
            read(images, index)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_is_no_data(mode: Any, tmp_path: Path) -> None:
    """nolabel opens none, so no member of one can be written anywhere."""
    path = tmp_path / "data.tar"
    with tarfile.open(path, mode) as archive:
        for name in ("../up.jpg", "/up.jpg", "good.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"data"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match="neither a zip nor a text file"):
        scan(path)
    assert sorted(tmp_path.rglob("*")) == before
