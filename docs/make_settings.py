"""Write docs/reference/settings.md from the schema of the settings. Run it after a change of a setting or a recipe."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nolabel.config import TrainConfig
from nolabel.config.describe import describe_settings
from nolabel.methods import METHODS
from nolabel.optim.optimizers import OptimConfig
from nolabel.recipes import RECIPES

PAGE = Path(__file__).parent / "reference" / "settings.md"

HEAD = """\
# Settings

Every setting of a training run. This page is made by `python docs/make_settings.py` from the code; do not edit it.

* **On the command line** a setting is an option: `batch_size` is `--batch-size`, `optim.lr` is `--optim.lr`.
* **In `config.yaml`** it has the name below, in the groups `optim` and `method`.
* **In Python** it is an argument: `nolabel.train("dino", DATA, OUT, epochs=10, method={"num_local": 4})`.
* **Defaults** are those of the schema. A [recipe](#recipes) changes some of them;
  `nolabel train RECIPE --help` shows the defaults of that recipe.
* `auto` is replaced by a value before the first step; `config.yaml` holds that value.
* **Resume**: *yes* means that `nolabel resume RUN --SETTING VALUE` may change it. *Allow* means that it also needs
  `--allow-change`, because another run follows from there. *No* means that the saved state does not fit it.
"""
RESUME = {"safe": "yes", "allow": "allow", "refused": "no"}


def value_name(value: Any) -> str:
    """A default as it is written in config.yaml."""
    if value is None or value is dataclasses.MISSING:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return f"`[{', '.join(str(item) for item in value)}]`"
    return f"`{value}`" if value != "" else "empty"


def rows(config: Any) -> Iterator[str]:
    """A table row per setting of a dataclass, in the order of the fields; its groups are apart."""
    groups = {
        field.name for field in dataclasses.fields(config) if dataclasses.is_dataclass(getattr(config, field.name))
    }
    for setting in describe_settings(config):
        if setting.name.partition(".")[0] not in groups:
            resume, about = RESUME[setting.mark.change], setting.about.replace("|", "\\|")
            yield f"| `{setting.name}` | {setting.type} | {value_name(setting.default)} | {about} | {resume} |"


def section(title: str, about: str, config: Any) -> str:
    head = f"## {title}\n\n{about}\n\n| setting | type | default | meaning | resume |\n|---|---|---|---|---|\n"
    return head + "\n".join(rows(config)) + "\n"


def flat(settings: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"`{prefix}{name}` {value_name(value).strip('`') if value != '' else 'empty'}"


def recipes() -> str:
    lines = ["## Recipes", "", "Changes of each recipe to the defaults above.", ""]
    lines += ["| recipe | method | settings |", "|---|---|---|"]
    lines += [f"| `{name}` | {r.method} | {', '.join(flat(r.settings)) or 'none'} |" for name, r in RECIPES.items()]
    return "\n".join(lines) + "\n"


def page() -> str:
    """The text of the page."""
    any_run = TrainConfig(method=next(iter(METHODS.values())).Config())
    parts = [
        HEAD,
        section("Run", "Settings of every run, whatever its method.", any_run),
        section("Optimizer", "The group `optim`: optimizer and schedules.", OptimConfig()),
    ]
    for name, method in METHODS.items():
        about = f"The group `method` of `{name}`, from `src/nolabel/methods/{name}.py`."
        about += f" [How to use it](../methods/{name}.md)."
        parts.append(section(f"Method `{name}`", about, method.Config()))
    return "\n".join([*parts, recipes()])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
