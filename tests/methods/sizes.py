"""Small sizes of each method, and what its tests need to know: one record per method. A new method: one record."""

from typing import NamedTuple

from nolabel.methods import MethodConfig
from nolabel.methods.densecl import DenseCLConfig
from nolabel.methods.dino import DINOConfig
from nolabel.methods.msn import MSNConfig
from nolabel.methods.simclr import SimCLRConfig


class Small(NamedTuple):
    """A method at the size of a test."""

    config: MethodConfig
    backbone: str
    """Network of the golden losses: vit or resnet."""
    changeable: str
    """Settings that may change on resume."""
    fixed: str
    """Settings that shape networks, views or what is remembered."""
    pair: tuple[str, str] | None = None
    """The momentum network and the trained one that it follows, under the names of the paper."""
    tolerance: float = 1e-3
    """Largest change of a golden loss: weights off by 1e-6 move it by a tenth of that."""


SIZES = {
    "densecl": Small(
        DenseCLConfig(size=32, queue_size=16, momentum=0.9, hidden_dim=32, projection_dim=8),
        "resnet",
        "temperature momentum dense_warmup_steps match",
        "size scale jitter blur queue_size dense_weight num_grid hidden_dim projection_dim shuffle_bn num_images",
        ("key", "query"),
    ),
    "dino": Small(
        DINOConfig(32, 16, 2, num_prototypes=64, hidden_dim=32, bottleneck_dim=16, drop_path=0.0, momentum=0.9),
        "vit",
        "freeze_last_layer student_temp teacher_temp warmup_teacher_temp warmup_teacher_temp_epochs center_momentum "
        "momentum momentum_end",
        "global_size local_size num_local global_scale local_scale num_prototypes hidden_dim bottleneck_dim "
        "head_layers head_batchnorm learn_magnitude drop_path",
        ("teacher", "student"),
    ),
    "msn": Small(
        MSNConfig(32, 16, 1, 2, mask_ratio=0.5, num_prototypes=16, hidden_dim=32, output_dim=16, momentum=0.9),
        "vit",
        "mask_ratio mask_per_sample temperature sharpening sinkhorn_rounds memax_weight entropy_weight label_smoothing "
        "momentum momentum_end",
        "random_size focal_size num_random num_focal random_scale focal_scale jitter blur num_prototypes hidden_dim "
        "output_dim head_batchnorm head_per_size drop_path",
        ("target", "anchor"),
    ),
    "simclr": Small(
        SimCLRConfig(size=32, projection_dim=16),
        "resnet",
        "temperature",
        "size scale jitter blur projection_dim projector_layers",
        tolerance=1e-2,
    ),
}
SMALL = {name: small.config for name, small in SIZES.items()}
PAIRS = dict(small.pair for small in SIZES.values() if small.pair)
"""Momentum networks to the trained ones."""
