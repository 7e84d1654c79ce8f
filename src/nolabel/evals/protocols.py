"""The protocols. A new one: its file in the folder of its family, a line here, and a line in `catalog.py`."""

from nolabel.evals.classification import finetune, knn, linear, lowshot
from nolabel.evals.dense import attention, segmentation, video
from nolabel.evals.detection import detection
from nolabel.evals.protocol import Protocol
from nolabel.evals.retrieval import copies, retrieval

PROTOCOLS: dict[str, Protocol] = {
    "knn": knn.PROTOCOL,
    "linear": linear.PROTOCOL,
    "lowshot": lowshot.PROTOCOL,
    "finetune": finetune.PROTOCOL,
    "retrieval": retrieval.PROTOCOL,
    "copies": copies.PROTOCOL,
    "video": video.PROTOCOL,
    "attention": attention.PROTOCOL,
    "segmentation": segmentation.PROTOCOL,
    "detection": detection.PROTOCOL,
}
