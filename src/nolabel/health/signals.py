"""The table of signals: every number that a run logs, with its title, unit and meaning.

The live line, the charts of the report and the page of metrics read this table. A new metric needs a row here; a metric
without one is drawn under its key.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Signal(NamedTuple):
    """One metric, or a few that share a chart."""

    names: Mapping[str, str]
    """Key in metrics.jsonl -> short label in the chart."""
    title: str
    about: str
    """One or two sentences for people who see the chart for the first time."""
    unit: str = ""
    """Unit of the numbers that are shown."""
    scale: float = 1.0
    """Factor from the number in metrics.jsonl to the number that is shown."""
    wide: bool = False
    """Draw a large chart: this one is looked at first."""
    drawn: bool = True
    """Whether the numbers have a chart of their own."""
    floors: tuple[str, ...] = ()
    """Keys whose last values are horizontal reference lines."""
    uniform_if: str = ""
    """Key that must be logged, too, for a reference line at ln K: the value of a uniform output of K prototypes."""
    live: str = ""
    """Format in the live line, filled with the number that is shown; empty: it is not there."""


SIGNALS: tuple[Signal, ...] = (
    Signal(
        {"knn": "trained"},
        "k-NN accuracy",
        "Share of labelled images whose nearest neighbours have their class. Dashed: the same without any training.",
        "%",
        wide=True,
        floors=("knn_untrained", "knn_raw"),
        live="k-NN {:.1f} %",
    ),
    Signal(
        {"loss": "loss"},
        "Loss",
        "The quantity that training minimises. It may rise while the features still get better: k\u2011NN decides.",
        wide=True,
        uniform_if="teacher_entropy",
        live="loss {:.3f}",
    ),
    Signal(
        {"teacher_entropy": "entropy", "teacher_student_kl": "KL to the student"},
        "Teacher",
        "Collapse: entropy at 0 (one output wins) or at ln K (all outputs are alike), or a KL that stays 0.",
        "nats",
        wide=True,
        uniform_if="teacher_entropy",
    ),
    Signal(
        {"positive_first": "share"},
        "Right partner found",
        "How often the other view of an image is the closest of all, in the batch or in the queue.",
        "%",
        100.0,
        wide=True,
    ),
    Signal(
        {"assignment_information": "information"},
        "Information of the outputs about the image",
        "0 when every image gets the same output, whatever that output is. A collapse takes exactly this away.",
        "nats",
        wide=True,
    ),
    Signal(
        {"target_entropy": "entropy", "memax_gap": "gap to even use"},
        "Targets",
        "The gap is 0 when all prototypes are used evenly on average, and ln K when one prototype gets every image.",
        "nats",
        wide=True,
        uniform_if="target_entropy",
    ),
    Signal(
        {"loss_global": "global", "loss_dense": "dense"},
        "Global and dense loss",
        "Before they are weighted. Both may rise while the queue fills with real keys.",
        "nats",
        wide=True,
    ),
    Signal(
        {"matches_mutual": "mutual", "matches_distinct": "distinct", "dense_by_place": "decided by the place"},
        "Matches between two views",
        "Locations of a view whose match finds back to them, and how many different locations are matched. Also the "
        "share of the dense head's output that is decided by the place of a location alone.",
        "%",
        100.0,
        wide=True,
    ),
    Signal(
        {"rankme": "RankMe", "effective_rank": "of the covariance"},
        "Effective rank of the features",
        "How many directions the features of fixed training images use. Compare runs of one method only.",
        wide=True,
    ),
    Signal(
        {"positive_similarity": "two views of an image", "negative_similarity": "two images"},
        "Similarity of two views and of two images",
        "Mean cosine. Where both lines meet, no image is told apart from another.",
        wide=True,
    ),
    Signal({"grad_norm": "before clipping"}, "Gradient norm", "Over all parameters, before clipping.", wide=True),
    Signal(
        {"lr": "learning rate"},
        "Learning rate",
        "Size of the optimizer's steps, by its schedule.",
        live="lr {:.1e}",
    ),
    Signal({"weight_decay": "weight decay"}, "Weight decay", "Pull of the weights towards 0, by its schedule."),
    Signal(
        {"momentum": "momentum"},
        "Momentum of the teacher",
        "Share of its old weights that the teacher keeps in a step.",
    ),
    Signal({"teacher_temp": "temperature"}, "Teacher temperature", "Sharpens the teacher's outputs: lower is sharper."),
    Signal(
        {"img_per_s": "images per second"},
        "Images per second",
        "Over all processes, since the last line.",
        live="{:.0f} img/s",
    ),
    Signal(
        {"data_wait": "share of the time"},
        "Waiting for data",
        "Time spent waiting for images. Above 30 % the loader is the limit.",
        "%",
        100.0,
        live="loader {:.0f} %",
    ),
    Signal(
        {"decode_ms": "reading and decoding", "crop_ms": "its views"},
        "Time per image",
        "Work of a process that prepares images.",
        "ms",
    ),
    Signal(
        {"feature_std": "spread"},
        "Spread of the features",
        "√D times the mean standard deviation of the unit features: near 1 when spread out, 0 when all are alike.",
    ),
    Signal(
        {"uniformity": "uniformity"},
        "Uniformity of the features",
        "ln of the mean of exp(-2 d²) over pairs of images: about -4 when spread evenly, 0 when all are alike.",
    ),
    Signal(
        {"alpha": "alpha"},
        "Decay of the eigenvalues",
        "Exponent of the power law that the spectrum of the features follows: about 1 is good, steep is collapse.",
    ),
    Signal(
        {"ce": "cross-entropy"},
        "Cross-entropy of the targets",
        "The part of the loss that compares the outputs with the targets.",
        "nats",
        uniform_if="target_entropy",
    ),
    Signal(
        {"target_max": "largest probability"},
        "Largest probability of a target",
        "After the targets are balanced over the prototypes, mean over the images: near 1 when they are sure.",
    ),
    Signal(
        {"prototypes_used": "prototypes"},
        "Prototypes in use",
        "Prototypes that win at least one image of the batch, over all processes.",
    ),
    Signal(
        {"dense_positive_similarity": "cosine"},
        "Similarity of matched locations",
        "Mean cosine of a location with its match in the other view.",
    ),
    Signal(
        {"dense_positive_first": "share"},
        "Right location found",
        "Share of the locations whose match is closer than the whole queue, 0 to 1.",
    ),
    Signal(
        {"dense_weight": "weight"},
        "Weight of the dense loss",
        "Share of the dense loss in the loss, 0 to 1; the global loss has the rest.",
    ),
    Signal(
        {"weight_norm": "norm"},
        "Norm of the weights",
        "Joint norm of all trained weights. A learning rate far too high makes it grow many times over.",
    ),
    Signal(
        {"skipped": "steps"},
        "Skipped steps",
        "Steps since the last line that were not finite; absent where there were none.",
    ),
    # Numbers without a chart.
    Signal(
        {"step": "step", "epoch": "epoch"}, "Progress", "Optimizer steps done, and passes over the images.", drawn=False
    ),
    Signal(
        {"knn_untrained": "untrained", "knn_raw": "raw pixels"},
        "Floors of k-NN",
        "k-NN accuracy of the same network before training, and of raw pixels. Only at step 0.",
        "%",
        drawn=False,
    ),
    Signal(
        {"distinct_images": "distinct"},
        "Distinct images",
        "Different pictures among the fixed training images, as a share of them, 0 to 1. Only at step 0.",
        drawn=False,
    ),
    Signal(
        {"step_ms": "step"},
        "Time per step",
        "Without the waiting for images.",
        "ms",
        drawn=False,
    ),
)
"""Table of signals, in the order of the report's charts."""

LABELS: Mapping[str, str] = {name: label for signal in SIGNALS for name, label in signal.names.items()}
"""Short label of each key in metrics.jsonl."""
