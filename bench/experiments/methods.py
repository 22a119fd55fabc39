"""What `make experiments` compares: what kind of row it is, and how its selector is made from a setting."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from bench.experiments.networks import make_network
from bench.experiments.protocol import Method
from bench.experiments.setting import Setting
from pysel.selection import ASSS, DynamicRandom, DynamicSelector, FixedSelector, Full, InfoBatch, Selector, StaticRandom

TAIL = 0.15  # the last epochs, of the data in full, of arXiv 2603.04981

KINDS = {
    "reference": "more steps than all others",
    "baseline": "without scores",
    "published": "arXiv 2603.04981 with its defaults",
    "ablation": "the same with one thing changed",
    "default": "as published, and with losses balanced by weights, which is ours",
    "variant": "the same with one thing changed",
    "learned": "arXiv 2601.02081, half of the samples, the same ones in every epoch",
}


def full(setting: Setting) -> Selector:
    """All of the data."""
    return Full(setting.num_samples)


def static_random(setting: Setting) -> Selector:
    """One random subset."""
    return StaticRandom(setting.num_samples, setting.settings.keep_ratio, key=setting.key)


def dynamic_random(
    setting: Setting, *, balance: str | None = None, tail: bool = False, balance_losses: bool = False
) -> Selector:
    """RS2, by default; with a ``tail`` of the data in full."""
    refine = TAIL if tail else 0.0
    return DynamicRandom(
        setting.num_samples,
        setting.settings.keep_ratio,
        epochs=setting.epochs(refine=refine),
        labels=setting.labels,
        balance=balance,
        refine=refine,
        balance_losses=balance_losses,
        key=setting.key,
    )


def _infobatch(setting: Setting) -> Selector:
    # it keeps what its losses let it keep, about 0.7 of the data: so many epochs use up the steps
    return InfoBatch(setting.num_samples, setting.epochs(0.7 * setting.num_samples), key=setting.key)


def dynamic(*, tail: bool = True, coverage: str = "once", **options: Any) -> Callable[[Setting], Selector]:
    """`DynamicSelector` with those options."""

    def make(setting: Setting) -> Selector:
        tables, refine = setting.data.tables(coverage), TAIL if tail else 0.0
        return DynamicSelector.from_scores(
            tables.representativeness,
            tables.diversity,
            setting.settings.keep_ratio,
            setting.epochs(refine=refine),
            labels=setting.labels,
            refine=refine,
            key=setting.key,
            **options,
        )

    return make


def _asss(setting: Setting, *, keep_ratio: float = 0.5) -> Selector:
    task, hidden = setting.task, setting.settings.hidden
    network = partial(make_network, task, hidden, setting.seed)
    # the samples of the largest logits, whether or not that helps: what is asked here is what the game finds
    fitted = ASSS(keep_ratio, pool=None, normalise=False, epochs=20, key=setting.key).fit(
        task.train_x, task.train_y, network
    )
    return FixedSelector(fitted.select().cpu(), setting.num_samples)


def _method(kind: str, *, coverage: str = "once", **options: Any) -> Method:
    return Method(kind, dynamic(coverage=coverage, **options))


_published = partial(_method, balance_losses=False)

METHODS: dict[str, Method] = {
    "full data": Method("reference", full),
    "full data, fewer epochs": Method("baseline", full),
    "static random": Method("baseline", static_random),
    "RS2": Method("baseline", dynamic_random),
    "RS2, balanced": Method("baseline", partial(dynamic_random, balance="equal")),
    "RS2, tail": Method("baseline", partial(dynamic_random, tail=True)),
    "RS2, balanced, tail": Method("baseline", partial(dynamic_random, balance="equal", tail=True)),
    "RS2, balanced losses": Method("baseline", partial(dynamic_random, balance="equal", balance_losses=True)),
    "RS2, balanced losses, tail": Method(
        "baseline", partial(dynamic_random, balance="equal", balance_losses=True, tail=True)
    ),
    "InfoBatch": Method("baseline", _infobatch),
    "DynamicSelector, as published": _published("published"),
    "published, Rep alone": _published("ablation", schedule=1.0),
    "published, Div alone": _published("ablation", schedule=0.0),
    "published, no penalty": _published("ablation", gamma=0.0),
    "published, constant schedule": _published("ablation", schedule=0.5),
    "published, no balance": _published("ablation", balance=None),
    "published, no tail": _published("ablation", tail=False),
    "DynamicSelector": _method("default"),
    "DynamicSelector, proportional": _method("variant", balance="proportional"),
    "DynamicSelector, Div alone": _method("variant", schedule=0.0),
    "DynamicSelector, Div alone, no tail": _method("variant", schedule=0.0, tail=False),
    "ASSS": Method("learned", _asss),
}
