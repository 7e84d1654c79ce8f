"""A backbone with the head that a loss needs: student or teacher, anchor or target, query or key."""

from typing import Generic, TypeVar

from torch import nn

from nolabel.networks.backbones import Backbone

H = TypeVar("H", bound=nn.Module)


class Network(nn.Module, Generic[H]):
    """A backbone and a head, without `forward`: each method calls them in its own way."""

    def __init__(self, backbone: Backbone, head: H) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
