"""What is compared: what kind of row it is, and how its selector is made from a setting."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.experiments import protocol
from bench.experiments.protocol import Setting, Settings
from pysel.selection import (
    ASSS,
    DynamicRandom,
    DynamicSelector,
    FixedSelector,
    Full,
    InfoBatch,
    Selector,
    StaticRandom,
)

KINDS = {
    "reference": "more steps than all others",
    "baseline": "without scores",
    "published": "arXiv 2603.04981 with its defaults",
    "ablation": "the same with one thing changed",
    "default": "as published, and with losses balanced by weights, which is ours",
    "variant": "the same with one thing changed",
    "learned": "arXiv 2601.02081, half of the samples, the same ones in every epoch",
}


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    kind: str
    make: Callable[[Setting], Selector]
    coverage: str | None = None  # the factor tables it needs: their `class_coverage`


def _full(setting: Setting) -> Selector:
    return Full(setting.num_samples)


def _static(setting: Setting) -> Selector:
    return StaticRandom(setting.num_samples, setting.settings.keep_ratio, key=setting.key)


def _random(
    setting: Setting, *, balance: str | None = None, tail: bool = False, balance_losses: bool = False
) -> Selector:
    settings = setting.settings
    return DynamicRandom(
        setting.num_samples,
        settings.keep_ratio,
        epochs=settings.epochs if tail else setting.epochs(),
        labels=setting.labels,
        balance=balance,
        refine=settings.refine if tail else 0.0,
        balance_losses=balance_losses,
        key=setting.key,
    )


def _infobatch(setting: Setting) -> Selector:
    # it keeps what its losses let it keep, about 0.7 of the data: so many epochs use up the steps
    return InfoBatch(setting.num_samples, setting.epochs(0.7 * setting.num_samples), key=setting.key)


def _dynamic(*, tail: bool = True, coverage: str = "once", **options: Any) -> Callable[[Setting], Selector]:
    def make(setting: Setting) -> Selector:
        settings, (tables, _) = setting.settings, setting.tables(coverage)
        return DynamicSelector.from_scores(
            tables.representativeness,
            tables.diversity,
            settings.keep_ratio,
            settings.epochs if tail else setting.epochs(),
            labels=setting.labels,
            refine=settings.refine if tail else 0.0,
            key=setting.key,
            **options,
        )

    return make


def _asss(setting: Setting, *, keep_ratio: float = 0.5) -> Selector:
    task, hidden = setting.task, setting.settings.hidden
    network = partial(protocol.make_network, task, hidden, setting.seed)
    # the samples of the largest logits, whether or not that helps: what is asked here is what the game finds
    fitted = ASSS(keep_ratio, pool=None, normalise=False, epochs=20, key=setting.key).fit(
        task.train_x, task.train_y, network
    )
    return FixedSelector(fitted.select(), setting.num_samples)


def _method(kind: str, *, coverage: str = "once", **options: Any) -> Method:
    return Method(kind, _dynamic(coverage=coverage, **options), coverage)


_published = partial(_method, balance_losses=False)

METHODS: dict[str, Method] = {
    "full data": Method("reference", _full),
    "full data, fewer epochs": Method("baseline", _full),
    "static random": Method("baseline", _static),
    "RS2": Method("baseline", _random),
    "RS2, balanced": Method("baseline", partial(_random, balance="equal")),
    "RS2, tail": Method("baseline", partial(_random, tail=True)),
    "RS2, balanced, tail": Method("baseline", partial(_random, balance="equal", tail=True)),
    "RS2, balanced losses": Method("baseline", partial(_random, balance="equal", balance_losses=True)),
    "RS2, balanced losses, tail": Method("baseline", partial(_random, balance="equal", balance_losses=True, tail=True)),
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


def run(scenario: str, method: str, seed: int, settings: Settings) -> dict[str, Any]:
    """Train, and return the record: what it is of, and what `protocol.train` says."""
    setting, what = protocol.setting(scenario, seed, settings), METHODS[method]
    offline = 0.0 if what.coverage is None else setting.tables(what.coverage)[1]
    start = time.process_time()
    selector = what.make(setting)
    offline += time.process_time() - start
    record = protocol.train(setting, selector, setting.full_steps if what.kind == "reference" else setting.steps)
    record["select_s"] = round(record["select_s"] + offline, 3)
    return {"scenario": scenario, "settings": settings.name, "method": method, "seed": seed, **record}
