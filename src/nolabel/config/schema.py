"""The settings of a run: one dataclass feeds command line, Python and config.yaml.

The order is that of help and config.yaml: five headings, and under each first what most runs set.
"""

from dataclasses import dataclass, field
from typing import Annotated, Generic, Literal, TypeVar

import tyro

from nolabel.optim.optimizers import OptimConfig
from nolabel.settings import CHANGEABLE, Mark
from nolabel.views import IMAGENET_MEAN, IMAGENET_STD

M = TypeVar("M")
Count = int | Literal["auto"]


@dataclass(frozen=True)
class TrainConfig(Generic[M]):
    """Settings of a training run. `auto` values are resolved before the first step and kept on resume."""

    method: M
    """Settings of the method."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer, learning rate, weight decay, clipping."""
    recipe: Annotated[str, tyro.conf.Suppress, Mark("training", "refused")] = ""
    """Name of the recipe that the defaults come from."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA"), Mark("data", "safe", everyday=True)] = ""
    """Images to train on; `nolabel --help` lists their forms."""
    out: Annotated[str, Mark("data", "safe", everyday=True)] = ""
    """Run folder to create."""
    labels: Annotated[str | None, Mark("data", "safe", everyday=True)] = None
    """Labelled images (class folders, or train + val) for k-NN while training; never trained on."""
    subfolder: Annotated[str | None, Mark("data", "safe")] = None
    """Train only on the images below this folder of DATA, such as train."""
    keep_masks: Annotated[bool, Mark("data", "safe")] = False
    """Train on masks, too; by default files with the names of masks are left out."""
    mean: Annotated[tuple[float, float, float], Mark("data", "refused")] = IMAGENET_MEAN
    """Mean per channel, subtracted from images in 0..1."""
    std: Annotated[tuple[float, float, float], Mark("data", "refused")] = IMAGENET_STD
    """Standard deviation per channel, by which images in 0..1 are divided."""
    range: Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="LOW HIGH"), Mark("data", "refused")] = None
    """Values that become black and white in files of more than 8 bits, such as 0 4095 for 12 bits in 16."""

    backbone: Annotated[str, Mark("training", "refused", everyday=True)] = "vit_small_patch16_224"
    """timm name of the network."""
    backbone_args: Annotated[tuple[str, ...], Mark("training", "refused", everyday=True)] = ()
    """Arguments of the network as key=value, such as patch_size=4."""
    positions: Annotated[Literal["auto", "timm", "dino", "msn"], CHANGEABLE] = "auto"
    """Way to resample a ViT's position embeddings for sizes other than the largest view's. auto: the method's own."""
    epochs: Annotated[int, Mark("training", "safe", everyday=True)] = 100
    """Passes over the images."""
    steps: Annotated[int | None, Mark("training", "safe", everyday=True)] = None
    """Optimizer steps, instead of epochs."""
    batch_size: Annotated[int, Mark("training", "refused", everyday=True)] = 1024
    """Images per optimizer step, summed over processes and micro-batches."""
    stretch: Annotated[float, Mark("training", "allow")] = 1.0
    """Lay every schedule over this many times the run, and end before the schedules do (MSN: 1.25)."""

    eval_every: Annotated[Count, Mark("watching", "safe", everyday=True)] = "auto"
    """Steps between two evaluations (k-NN with labels, pictures); auto: 20 per run, fewer in a short one."""
    log_every: Annotated[Count, Mark("watching", "safe")] = "auto"
    """Steps between two lines of metrics."""
    checkpoint_every: Annotated[Count, Mark("watching", "safe")] = "auto"
    """Steps between two checkpoints; auto: one per epoch. After ten minutes without one there is one, too."""
    keep_checkpoints: Annotated[int, Mark("watching", "safe")] = 3
    """Newest checkpoints to keep; two at least."""
    stop_on_collapse: Annotated[bool, Mark("watching", "safe")] = False
    """End the run with exit code 70 when the health monitor gives an alarm; it always warns."""
    tracker: Annotated[str, Mark("watching", "safe")] = "none"
    """Tracker that gets the metrics as they come: none, or tensorboard (extra tensorboard), into RUN/tensorboard."""

    device: Annotated[str, Mark("speed", "safe", everyday=True)] = "auto"
    """Device to train on. auto: cuda, else mps, else cpu."""
    workers: Annotated[Count, Mark("speed", "safe", everyday=True)] = "auto"
    """Processes that prepare images."""
    grad_checkpointing: Annotated[bool, Mark("speed", "safe")] = False
    """Recompute all activations in the backward pass: the least memory, 20 to 33 % slower."""
    keep_less: Annotated[bool, Mark("speed", "safe")] = False
    """Recompute cheap activations in the backward pass (plain ViTs): 40 % less activation memory, 5 % slower."""

    seed: Annotated[int, Mark("exactness", "refused", everyday=True)] = 0
    """Seed of everything random: weights, order of the images, views, masks."""
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], Mark("exactness", "allow", everyday=True)] = "auto"
    """Precision of forward and backward passes. auto: bf16 where the hardware multiplies it fast, else fp32."""
    micro_batch: Annotated[Count, Mark("exactness", "allow", everyday=True)] = "auto"
    """Images per forward pass of a process; the gradients of a step are summed. auto: all at once."""
    compile: Annotated[bool, Mark("exactness", "allow")] = False
    """Compile the networks block by block (torch.compile): for GPUs; on a CPU it takes over a minute and gains 3 %."""
    threads: Annotated[Count, Mark("exactness", "allow")] = "auto"
    """Threads of torch on the CPU."""
    augment: Annotated[Literal["auto", "cpu", "device"], Mark("exactness", "allow")] = "auto"
    """Place where views are cut. cpu: workers; device: workers only decode; auto: on CUDA by measurement, else cpu."""
    view_engine: Annotated[Literal["auto", "torch", "numba"], Mark("exactness", "allow")] = "auto"
    """Engine of views on the CPU. auto: numba where it is installed (extra fast), several times faster than torch."""
    full_decode: Annotated[bool, Mark("exactness", "allow")] = False
    """Decode large JPEGs in full; otherwise at 1/2, 1/4 or 1/8 where no crop needs more: several times faster."""
