"""The options of training: a frozen list, each under a heading and with a sentence that stands alone.

An option comes only with its reason: whoever adds one here says in CHANGELOG.md what it is for, and which one could go.
"""

import dataclasses
from typing import Any

import pytest
from sizes import SIZES

from nolabel.cli.help import format_help, settings_by_heading
from nolabel.cli.main import main
from nolabel.config.describe import describe_settings
from nolabel.config.load import load_recipe
from nolabel.methods import METHODS
from nolabel.settings import HEADINGS

RUN = {
    "data": "data out labels subfolder keep_masks mean std range",
    "training": "backbone backbone_args epochs steps batch_size optim.lr positions stretch optim.name optim.start_lr "
    "optim.min_lr optim.warmup_epochs optim.lr_by_epoch optim.weight_decay optim.weight_decay_end optim.decay_all "
    "optim.clip_grad optim.clip optim.sgd_momentum optim.lars_rate",
    "watching": "eval_every log_every checkpoint_every keep_checkpoints stop_on_collapse tracker",
    "speed": "device workers grad_checkpointing keep_less",
    "exactness": "seed precision micro_batch compile threads augment view_engine full_decode",
}


@pytest.mark.parametrize("method", METHODS)
def test_the_options_are_those_of_the_list(method: str) -> None:
    settings = settings_by_heading(load_recipe(method))
    names = {heading: [one.name for one in below] for heading, below in settings.items()}
    expected = {heading: below.split() for heading, below in RUN.items()}
    own = set(f"{SIZES[method].changeable} {SIZES[method].fixed}".split()) - {"num_images"}  # filled in by nolabel
    assert {name.removeprefix("method.") for name in names["training"] if name.startswith("method.")} == own
    names["training"] = [name for name in names["training"] if not name.startswith("method.")]
    assert names == expected


@pytest.mark.parametrize("method", METHODS)
def test_every_option_has_a_sentence_of_its_own(method: str) -> None:
    for setting in describe_settings(load_recipe(method)):
        assert setting.about and setting.about[0] not in "(,;" and setting.about.endswith("."), setting.name
        assert not setting.about.startswith(("What ", "Of ", "That ")), setting.name
        assert setting.mark.heading in HEADINGS


def test_help_shows_every_option_and_default(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    main(["train", "dino", "--help"])
    page = capsys.readouterr().out
    config = load_recipe("dino")
    assert page.strip() == format_help(config, *page_head(page)).strip()
    for below in settings_by_heading(config).values():
        for setting in below:
            assert ("DATA" if setting.name == "data" else f"  --{setting.name.replace('_', '-')}") in page
    assert "default: 0.996" in page and max(map(len, page.splitlines())) <= 100


def page_head(page: str) -> tuple[str, str]:
    """Usage and introduction of a page of help."""
    usage, _, rest = page.removeprefix("usage: ").partition("\n\n")
    return usage, " ".join(rest.partition("\n\n")[0].split())


def test_every_field_is_an_option_or_filled_in() -> None:
    config = load_recipe("densecl")
    hidden = {one.name for one in describe_settings(config) if one.hidden}
    assert hidden == {"recipe", "method.num_images"}
    fields = {f.name for f in dataclasses.fields(config)} - {"method", "optim", "recipe"}
    assert fields == {
        one.name for below in settings_by_heading(config).values() for one in below if "." not in one.name
    }
