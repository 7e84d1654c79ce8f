"""The protocols. Adding one: its file in its family's folder, a line here, and one in `recipes.py` for the list."""

from nolabel.evals.classification import finetune, knn, linear, lowshot
from nolabel.evals.classification.finetune_settings import FinetuneConfig
from nolabel.evals.dense import attention, segmentation, video
from nolabel.evals.dense.clips import accepts_clips
from nolabel.evals.dense.layouts import accepts_masks, accepts_train_masks
from nolabel.evals.detection import detection
from nolabel.evals.detection.box_layouts import accepts_boxes
from nolabel.evals.protocol import Protocol
from nolabel.evals.retrieval import copies, retrieval
from nolabel.evals.shared.labelled import accepts_classes
from nolabel.evals.shared.tables import accepts_splits

PROTOCOLS: dict[str, Protocol] = {
    "knn": Protocol("k-NN accuracy, %", knn.KNNConfig, knn.evaluate_knn, knn.columns, accepts_classes),
    "linear": Protocol(
        "linear accuracy, %", linear.LinearConfig, linear.evaluate_linear, linear.columns, accepts_splits
    ),
    "lowshot": Protocol(
        "low-shot top-1, %", lowshot.LowshotConfig, lowshot.evaluate_lowshot, lowshot.columns, accepts_splits
    ),
    "finetune": Protocol(
        "fine-tuned accuracy, %",
        FinetuneConfig,
        finetune.evaluate_finetune,
        finetune.columns,
        accepts_splits,
        unasked=False,
    ),
    "retrieval": Protocol(
        "retrieval, %",
        retrieval.RetrievalConfig,
        retrieval.evaluate_retrieval,
        retrieval.columns,
        retrieval.accepts,
    ),
    "copies": Protocol("copies, mAP, %", copies.CopiesConfig, copies.evaluate_copies, copies.columns, copies.accepts),
    "video": Protocol("DAVIS, %", video.VideoConfig, video.evaluate_video, video.columns, accepts_clips),
    "attention": Protocol(
        "attention masks, %",
        attention.AttentionConfig,
        attention.evaluate_attention,
        attention.columns,
        accepts_masks,
    ),
    "segmentation": Protocol(
        "segmentation, %",
        segmentation.SegmentationConfig,
        segmentation.evaluate_segmentation,
        segmentation.columns,
        accepts_train_masks,
    ),
    "detection": Protocol(
        "detection, %",
        detection.DetectionConfig,
        detection.evaluate_detection,
        detection.columns,
        accepts_boxes,
        unasked=False,
    ),
}
