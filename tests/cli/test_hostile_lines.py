"""No command line ends as a bug does: hostile_lines.py makes them."""

import sys
from pathlib import Path

import pytest

from nolabel.cli.show import _distinct
from nolabel.evals import protocol

sys.path.insert(0, str(Path(__file__).parent))
import hostile_lines


def bugs(seed: int, number: int, folder: Path) -> list[str]:
    inputs = hostile_lines.make_inputs(folder)
    cases = (hostile_lines.run(line) for line in hostile_lines.command_lines(seed, number, inputs, folder))
    return [f"{case.args}: {case.code}, {case.words[-300:]}" for case in cases if case.is_bug()]


@pytest.mark.filterwarnings("ignore")
def test_hostile_options_end_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert bugs(7, 8, tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(100, 104))
def test_many_hostile_options_end_in_words(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert bugs(seed, 300, tmp_path) == []


CASES = [
    ("show attention random:test_resnet {image} --out {out} --size 99999999999999999999", 2, "--size"),
    ("show pca random:test_resnet {image} --out {image}", 74, "File exists"),
    ("show attention random:test_resnet {image} --size 32 --out " + "a" * 300, 74, "File name too long"),
    ("embed random:test_resnet {data} --out {out}.npz --image-size 1000000007", 2, "image_size must be at most"),
    ("eval linear random:test_resnet {data} --seed -1 --no-cache", 2, "seed must be"),
    ("pack {data} --out {out} --threads -1", 2, "--threads -1"),
    ("train simclr-small {data} --out {out} --batch-size 2 --method.scale nan 1", 2, "--method.scale is nan"),
    ("train simclr-small {data} --out {out} --batch-size 2 --method.scale 0.9 0.1", 2, "smaller first"),
    ("train simclr-small {data} --out {out} --batch-size 2 --method.blur 2", 2, "numbers from 0 to 1"),
    ("train msn-small {data} --out {out} --batch-size 2 --method.label-smoothing 2", 2, "label-smoothing"),
    ("train simclr-small {data} --out {out} --batch-size 2 --method.projection-dim 100000000000", 2, "memory"),
]


@pytest.mark.parametrize(("line", "code", "words"), CASES)
def test_what_it_has_found(line: str, code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inputs = hostile_lines.make_inputs(tmp_path)
    image, out = f"{inputs['labelled']}/val/a/0.png", str(tmp_path / "out")
    case = hostile_lines.run(line.format(image=image, out=out, data=inputs["labelled"]).split())
    assert case.code == code and words in case.words and "internal error" not in case.words


def test_a_result_that_cannot_be_written_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(protocol, "write_result", full)
    more = f"--out {tmp_path}/r.json --json --image-size 32 --no-floor --no-cache --device cpu".split()
    with pytest.raises(SystemExit) as caught:
        hostile_lines.main(
            ["eval", "knn", "random:test_resnet", hostile_lines.make_inputs(tmp_path)["labelled"], *more]
        )
    out, err = capsys.readouterr()
    assert caught.value.code == 74 and '"metrics"' in out and "No space left" in err


def test_pictures_of_two_images_have_two_names() -> None:
    assert _distinct(["a-b", "a-b", "A-B", "a-b-2", "x"]) == ["a-b", "a-b-2", "A-B-3", "a-b-2-2", "x"]
