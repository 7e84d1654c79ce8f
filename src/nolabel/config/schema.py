"""The settings of a run: one dataclass feeds command line, Python and config.yaml."""

from dataclasses import dataclass, field
from typing import Annotated, Generic, Literal, TypeVar

import tyro

from nolabel.optim import OptimConfig
from nolabel.views import IMAGENET_MEAN, IMAGENET_STD

M = TypeVar("M")


@dataclass(frozen=True)
class TrainConfig(Generic[M]):
    """Settings of a training run. `auto` values are resolved before the first step and kept on resume."""

    method: M
    """Settings of the method."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer, learning rate, weight decay, clipping."""
    recipe: Annotated[str, tyro.conf.Suppress] = ""
    """Name of the recipe that the defaults come from."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")] = ""
    """Folder, zip or text file of paths with the images."""
    subfolder: str | None = None
    """Train only on what lies below this folder of DATA, such as train."""
    out: str = ""
    """Run folder to create."""
    labels: str | None = None
    """Labelled images (class folders, or train + val) for k-NN while training; never trained on."""
    backbone: str = "vit_small_patch16_224"
    """timm name of the network."""
    backbone_args: tuple[str, ...] = ()
    """Arguments of the network as key=value, such as patch_size=4."""
    epochs: int = 100
    """Passes over the images."""
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    stretch: float = 1.0
    """Lay every schedule over this many times the run, and end before the schedules do (MSN: 1.25)."""
    batch_size: int = 1024
    """Images an optimizer step, over all processes and micro-batches."""
    micro_batch: int | Literal["auto"] = "auto"
    """Images a forward pass and process; the gradients of a step are summed. auto: all at once."""
    keep_less: bool = False
    """Make what is cheap a second time in the backward pass (plain ViTs): 0.6 of the memory, 5 % slower."""
    grad_checkpointing: bool = False
    """Make all activations a second time in the backward pass: the least memory, a fifth to a third slower."""
    compile: bool = False
    """torch.compile the networks block by block: for GPUs; on a CPU it takes over a minute and gains 3 %."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the hardware multiplies it fast, else fp32."""
    device: str = "auto"
    """auto: cuda, else mps, else cpu."""
    seed: int = 0
    workers: int | Literal["auto"] = "auto"
    """Processes that prepare images."""
    full_decode: bool = False
    """Decode large JPEGs in full; otherwise at 1/2, 1/4 or 1/8 where no crop needs more: several times faster."""
    augment: Literal["auto", "cpu", "device"] = "auto"
    """Where views are cut: cpu: by the workers; device: workers only decode. auto: on CUDA by measurement, else cpu."""
    view_engine: Literal["auto", "torch", "numba"] = "auto"
    """What makes views on the CPU. auto: numba where it is installed (extra fast), several times faster than torch."""
    threads: int | Literal["auto"] = "auto"
    """Threads of torch on the CPU; part of what makes a run repeatable bit by bit."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from each channel of images in 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Divides each channel."""
    log_every: int | Literal["auto"] = "auto"
    """Steps between two lines of metrics."""
    eval_every: int | Literal["auto"] = "auto"
    """Steps between two evaluations (k-NN with labels, pictures); auto: 20 in a run, fewer in a short one."""
    checkpoint_every: int | Literal["auto"] = "auto"
    """Steps between two checkpoints; auto: an epoch. Ten minutes without one make one, too."""
    keep_checkpoints: int = 3
    """Newest checkpoints that are kept; two at least."""
    stop_on_collapse: bool = False
    """End the run with exit code 70 when the health monitor gives an alarm; it always warns."""
    tracker: Literal["none", "tensorboard"] = "none"
    """Copy the metrics into RUN/tensorboard as they come (extra tensorboard); if that fails, training goes on."""
