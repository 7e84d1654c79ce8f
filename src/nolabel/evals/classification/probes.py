"""Linear probes of frozen features, many settings trained side by side in one pass over the data.

All learning rates of one layout are one parameter tensor (S, C, D), so that a batch is read and multiplied once. Logits
have the images last, (S, C, B): over classes last a softmax takes as long as all the rest of a step (ten classes, CPU).
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nolabel.evals.classification.batches import batch_rows
from nolabel.evals.shared.pieces import Layout
from nolabel.optim.schedules import Clock, cosine, warmup_cosine

Head = Literal["plain", "batchnorm", "layernorm_l2"]


HEADS: tuple[Head, ...] = get_args(Head)


class Plan(NamedTuple):
    """Training of probes. SGD has momentum 0.9 and no weight decay."""

    head: Head
    """plain: Linear, SGD (DINO). batchnorm: BatchNorm without affine, Linear, LARS (MAE). layernorm_l2: LayerNorm,
    unit length, Linear, Nesterov SGD (MSN)."""
    steps: int
    steps_per_epoch: int
    batch_size: int
    warmup_steps: int = 0
    by_epoch: bool = False
    """The cosine moves once per epoch (DINO), not at every step."""
    seed: int = 0
    bf16: bool = False
    """Products of matrices in bfloat16; weights, momentum and softmax stay in fp32."""


class Score(NamedTuple):
    """Accuracies in percent of S heads; NaN where a head's weights are not finite."""

    top1: list[float]
    top5: list[float]


class Heads(nn.Module):
    """S linear classifiers over the same features; all start from the same weights N(0, 0.01^2), biases 0."""

    def __init__(self, kind: Head, num_settings: int, num_classes: int, dim: int, seed: int = 0) -> None:
        super().__init__()
        self.kind = kind
        weight = 0.01 * torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(weight.repeat(num_settings, 1, 1))
        self.bias = nn.Parameter(torch.zeros(num_settings, num_classes))
        if kind == "batchnorm":  # without affine parameters it is the same for every setting
            self.norm = nn.BatchNorm1d(dim, eps=1e-6, affine=False)
        if kind == "layernorm_l2":
            self.gain = nn.Parameter(torch.ones(num_settings, dim))
            self.shift = nn.Parameter(torch.zeros(num_settings, dim))

    def only(self, setting: int) -> "Heads":
        """One of the S heads by itself."""
        head = copy.deepcopy(self)
        for p in head.parameters():
            p.data = p.data[setting : setting + 1].clone()
        return head

    def forward(self, x: Tensor) -> Tensor:
        """Logits (S, C, B) of features (B, D)."""
        if self.kind == "layernorm_l2":
            return self._on_the_sphere(F.layer_norm(x, x.shape[1:])) + self.bias[:, :, None]
        x = self.norm(x) if self.kind == "batchnorm" else x
        logits = torch.addmm(self.bias.flatten()[:, None], self.weight.flatten(0, 1), x.T)
        return logits.view(*self.bias.shape, -1)

    def _on_the_sphere(self, x: Tensor) -> Tensor:
        """`weight @ z / |z|` for z = gain * x + shift of every setting, without making the (S, B, D) tensor z."""
        logits = ((self.gain[:, None] * self.weight).flatten(0, 1) @ x.T).view(*self.bias.shape, -1)
        logits = logits + self.weight @ self.shift[:, :, None]
        squares = self.gain.square() @ x.square().T + 2 * (self.gain * self.shift) @ x.T
        lengths = (squares + self.shift.square().sum(1, keepdim=True)).clamp_min(1e-12).sqrt()
        return logits / lengths[:, None]


def train_heads(
    groups: Mapping[Layout, Heads],
    lrs: Sequence[float],
    batches: Iterable[tuple[Mapping[Layout, Tensor], Tensor]],
    plan: Plan,
) -> None:
    """Train every head of every group, in place, on `plan.steps` batches of features (B, D) per layout and labels (B,).

    `lrs` are the S learning rates of each group for 256 images per step; they scale with the batch.
    """
    parameters = [p for heads in groups.values() for p in heads.parameters()]
    buffers = [torch.zeros_like(p) for p in parameters]
    device = parameters[0].device
    rates = torch.tensor(lrs, device=device) * (plan.batch_size / 256)
    for heads in groups.values():
        heads.train()
    for step, (features, labels) in enumerate(batches):
        with torch.autocast(device.type, torch.bfloat16, enabled=plan.bf16):
            logits = [heads(features[layout]) for layout, heads in groups.items()]
        loss = torch.stack([_loss(x.float(), labels) for x in logits]).sum()
        grads = torch.autograd.grad(loss, parameters)
        factor = _schedule(plan, step)
        for p, grad, buffer in zip(parameters, grads, buffers, strict=True):
            _move(p.detach(), grad, buffer, (rates * factor).view(-1, *[1] * (p.dim() - 1)), plan.head)
    for heads in groups.values():
        heads.eval()


def table_batches(
    features: Mapping[Layout, Tensor], labels: Tensor, plan: Plan
) -> Iterator[tuple[dict[Layout, Tensor], Tensor]]:
    """Batches of tables in memory, in the order of `batch_rows`."""
    for _, rows in batch_rows(len(labels), plan.steps, plan.steps_per_epoch, plan.batch_size, plan.seed, labels.device):
        yield {layout: table.index_select(0, rows) for layout, table in features.items()}, labels[rows]


@torch.no_grad()
def score(heads: Heads, features: Tensor, labels: Tensor, chunk_size: int = 4096) -> Score:
    """Top-1 and top-5 of every head. Of equal logits the class of lower id is first."""
    num_settings, num_classes = heads.bias.shape
    hits = torch.zeros(2, num_settings, dtype=torch.int64, device=labels.device)
    for rows in torch.split(torch.arange(len(labels), device=labels.device), chunk_size):
        logits = heads(features[rows])
        truth = labels[rows].expand(num_settings, 1, -1)
        own = logits.gather(1, truth)
        first = torch.arange(num_classes, device=labels.device)[:, None] < truth
        better = ((logits > own) | ((logits == own) & first)).sum(1)
        hits += torch.stack([(better < top).sum(1) for top in (1, 5)])
    finite = torch.stack([p.isfinite().flatten(1).all(1) for p in heads.parameters()]).all(0)
    percent = torch.where(finite, 100 * hits.double() / len(labels), torch.nan)
    return Score(*percent.tolist())


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over settings of each one's mean cross-entropy, so that every setting has its own gradient."""
    return F.cross_entropy(logits, labels.expand(len(logits), -1), reduction="sum") / len(labels)


def _schedule(plan: Plan, step: int) -> float:
    """The learning rate as a share of its peak: a cosine to 0, after a linear warm-up where there is one."""
    if plan.by_epoch:
        step -= step % plan.steps_per_epoch
        return cosine(1.0, 0.0, step / plan.steps)
    return warmup_cosine(1.0, 0.0, plan.warmup_steps, Clock(step, plan.steps, plan.steps_per_epoch))


def _move(p: Tensor, grad: Tensor, buffer: Tensor, lr: Tensor, head: Head, momentum: float = 0.9) -> None:
    """One step, in place; `lr` has the shape (S, 1, ...)."""
    if head == "plain":
        buffer.mul_(momentum).add_(grad)
        p.addcmul_(lr, buffer, value=-1)
        return
    if head == "batchnorm" and p.dim() == 3:  # LARS: each weight matrix moves by 0.001 of its length (You et al. 2017)
        size, push = (x.flatten(1).norm(dim=1)[:, None, None] for x in (p, grad))
        grad = grad * torch.where((size > 0) & (push > 0), 0.001 * size / push, 1.0)
    buffer.mul_(momentum).add_(lr * grad)  # the learning rate goes into the buffer
    p.sub_(buffer if head == "batchnorm" else lr * grad + momentum * buffer)
