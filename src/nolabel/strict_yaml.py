"""YAML files of strangers: plain values only, none of them deep, long, shared or given twice."""

from pathlib import Path
from typing import Any

import yaml

from nolabel.errors import UsageError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_LENGTH = 2_000


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file; UsageError for anything else, for duplicate keys and for files over 1 MB."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) <= MAX_BYTES:
            loaded = yaml.load(data.decode("utf-8"), Loader=_StrictLoader)  # noqa: S506 - a SafeLoader that refuses more
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:  # the middle two: `2024-99-99`, `? [1]`
        raise UsageError(f"{path} cannot be read as settings: {' '.join(str(error).split())[:500]}") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} is larger than 1 MB: that is no config.yaml of nolabel.")
    if not isinstance(loaded, dict):
        raise UsageError(f"{path} holds no settings: expected `name: value` lines as in RUN/config.yaml.")
    return loaded


class _StrictLoader(yaml.SafeLoader):
    """Refuses what no config.yaml of nolabel holds."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it uses aliases (*name): write the value out")
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if len(getattr(event, "value", None) or "") > MAX_LENGTH:
            raise yaml.YAMLError(f"one of its values has more than {MAX_LENGTH} characters")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.YAMLError(f"its values are nested more than {MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(k, deep=True) for k, _ in node.value]
        twice = {k for k in keys if keys.count(k) > 1}
        if twice:
            raise yaml.YAMLError(f"{sorted(map(str, twice))} given more than once")
        return super().construct_mapping(node, deep)
