"""A class-balanced part of labelled data, always the same images: what quick comparisons are measured on.

python benchmarks/balanced.py imagenette224.zip part --train 2000 --val 1000
"""

import argparse
from pathlib import Path

from nolabel.data.images import read, scan_labelled
from nolabel.evals.shared.labelled import subset

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Copy a class-balanced part of labelled data.")
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    for split in ("train", "val", "test"):
        parser.add_argument(f"--{split}", type=int, default=0, help="images")
    options = parser.parse_args()
    for split, labelled in scan_labelled(options.data).items():
        part = subset(labelled, getattr(options, split))
        for i, name in enumerate(part.images.names):
            path = options.out / split / part.classes[part.labels[i]] / Path(name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(read(part.images, i))
        print(f"{split}: {len(part.labels)} images")
