"""One group of items, in a process of its own: writes the text of each item to FOLDER/NAME.txt.

`worker.py GROUP FOLDER PATTERN`; GROUP `two` starts a pair of itself over gloo, of which the first writes;
`worker.py --list FOLDER PATTERN` prints names. An item that raises an error has no text, and the others go on.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import torch
import worlds
from compare import selected
from items import GROUPS


def main(group: str, folder: Path, pattern: str) -> None:
    torch.set_num_threads(1)
    items = {name: item for name, item in GROUPS[group]().items() if selected(name, pattern)}
    failed: list[str] = []
    if not items:
        return
    with tempfile.TemporaryDirectory() as place:
        worlds.pictures(Path(place) / "world")
        if group == "two":
            _start_pair(group, folder, pattern, Path(place))
            return
        for number, (name, item) in enumerate(items.items()):
            own = Path(place) / str(number)
            shutil.copytree(Path(place) / "world", own / "world")
            os.chdir(own)
            try:
                _write(folder / f"{name}.txt", item().replace(str(own), "HERE"))
            except Exception:
                traceback.print_exc()
                failed.append(name)
            os.chdir(place)
            shutil.rmtree(own)
    if failed:
        sys.exit(f"not computed: {', '.join(failed)}")


def one_of_two(group: str, folder: Path, pattern: str) -> None:
    """Run the items as the process that the variables of torchrun name, in the working directory of both."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    for name, item in GROUPS[group]().items():
        if selected(name, pattern):
            text = item()
            if os.environ["RANK"] == "0":
                _write(folder / f"{name}.txt", text)
            torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _start_pair(group: str, folder: Path, pattern: str, place: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = [sys.executable, str(Path(__file__).resolve()), group, str(folder), pattern]
    ranks = ({"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"} for rank in range(2))
    pair = [subprocess.Popen(command, cwd=place, env=os.environ | shared | rank) for rank in ranks]
    codes = [process.wait() for process in pair]
    if any(codes):
        sys.exit(f"the pair of processes left with {codes}")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def show_names(pattern: str) -> None:
    names = (name for group in GROUPS.values() for name in group())
    print("\n".join(sorted(name for name in names if selected(name, pattern))))


if __name__ == "__main__":  # data-loader processes import this module again
    if sys.argv[1] == "--list":
        show_names(sys.argv[3])
    elif "RANK" in os.environ:
        one_of_two(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    else:
        main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
