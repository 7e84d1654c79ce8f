"""The exact freeze names what differs, and has an item for everything that there is."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("freeze")))

from compare import differences, format_hashes, parse_hashes, selected
from items import GROUPS

from nolabel.catalog import PROTOCOLS
from nolabel.methods import METHODS
from nolabel.recipes import RECIPES

OLD = {"eval/knn": "a", "help/train dino": "b", "method/dino": "c"}


def test_moved_new_and_vanished_items_are_named() -> None:
    assert differences(OLD, dict(OLD)) == {"moved": [], "new": [], "vanished": []}
    new = {"eval/knn": "a", "help/train dino": "z", "method/ibot": "d"}
    found = {"moved": ["help/train dino"], "new": ["method/ibot"], "vanished": ["method/dino"]}
    assert differences(OLD, new) == found
    assert differences(OLD, new, "method/") == found | {"moved": []}, "what was not asked for has not vanished"


def test_a_list_of_hashes_comes_back() -> None:
    lines = format_hashes(OLD)
    assert lines.splitlines()[1] == "b  help/train dino"
    assert parse_hashes(lines) == OLD


def test_a_part_or_a_pattern_selects() -> None:
    assert [name for name in OLD if selected(name, "dino")] == ["help/train dino", "method/dino"]
    assert [name for name in OLD if selected(name, "e*/*n")] == ["eval/knn", "help/train dino", "method/dino"]
    assert [name for name in OLD if selected(name, "")] == list(OLD)


def test_every_method_recipe_and_protocol_has_an_item() -> None:
    names = [name for group in GROUPS.values() for name in group()]
    assert len(names) == len(set(names))
    wanted = {f"config/{name}" for name in RECIPES} | {f"eval/{name}" for name in PROTOCOLS}
    wanted |= {f"help/nolabel-train-{name}" for name in RECIPES}
    wanted |= {f"method/{name}/resnet/bf16/{number}" for name in METHODS for number in (1, 2)}
    assert wanted - set(names) == set()
