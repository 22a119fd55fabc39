"""What an op refuses it refuses before it takes memory.

Results and copies of arguments of these sizes fit into no address space, so that whoever asks for memory first gets
torch's RuntimeError.
"""

import pytest
import torch

import pysel

OPS = torch.ops.pysel
HUGE = 1 << 45
X = torch.zeros(()).expand(HUGE)
X2 = torch.zeros(()).expand(HUGE, 2)
INDEX, INDEX2 = X.new_zeros((), dtype=torch.int64).expand(HUGE), X.new_zeros((), dtype=torch.int64).expand(HUGE, 2)
KEY, TAU = pysel.key(0), torch.ones(())
NO_KEY, NO_TAU = KEY[:1], torch.zeros(())
WHOLE = X.new_zeros((), dtype=torch.int16).expand(HUGE)
FEW = torch.zeros(5)


def gumbel_softmax(x=X, tau=TAU, key=KEY, dim=-1, start=0):
    return OPS.gumbel_softmax(x, tau, key, dim, False, start, None)


def gumbel_sigmoid(x=X, tau=TAU, key=KEY, start=0):
    return OPS.gumbel_sigmoid(x, tau, key, False, start, None)


def gumbel_argmax(x=X2, key=KEY, dim=-1, start=0):
    return OPS.gumbel_argmax(x, key, dim, start, None)


def weighted_sample(w=X, k=HUGE, replacement=False, order="draw", groups=None, quotas=None, key=KEY, start=0):
    return OPS.weighted_sample(w, k, replacement, False, order, groups, quotas, key, start, None)


def select(x=X, k=HUGE, groups=None, quotas=None, key=None, start=0):
    return OPS.select(x, k, True, groups, quotas, key, None, start)


def usage_penalty(x=X, counts=X, gamma=0.1, form="log", step=1):
    return OPS.usage_penalty(x, counts, gamma, form, step)


def usage_step_(counts=FEW, selected=INDEX, x=FEW, gamma=0.1, decay=1.0, form="log", step=1):
    return OPS.usage_step_(counts, selected, x, gamma, decay, form, step)


def usage_select_(first=X, k=HUGE, mix=0.5, gamma=0.1, form="log", groups=None, quotas=None, key=None):
    counts = torch.zeros(HUGE, device="meta") if first is X else X
    return OPS.usage_select_(counts, first, X, mix, gamma, form, 1, k, groups, quotas, key, None)


ONE_GROUP = {"groups": INDEX, "quotas": torch.tensor([5])}  # of more than 5
REFUSED = {
    "gumbel_softmax dim": lambda: gumbel_softmax(dim=1),
    "gumbel_softmax tau": lambda: gumbel_softmax(tau=NO_TAU),
    "gumbel_softmax key": lambda: gumbel_softmax(key=NO_KEY),
    "gumbel_softmax start": lambda: gumbel_softmax(start=-1),
    "gumbel_softmax dtype": lambda: gumbel_softmax(WHOLE),
    "gumbel_softmax_backward tau": lambda: OPS.gumbel_softmax_backward(X, X, -TAU, -1),
    "gumbel_softmax_backward dtype": lambda: OPS.gumbel_softmax_backward(WHOLE, WHOLE, TAU, -1),
    "gumbel_sigmoid tau": lambda: gumbel_sigmoid(tau=NO_TAU),
    "gumbel_sigmoid key": lambda: gumbel_sigmoid(key=NO_KEY),
    "gumbel_sigmoid start": lambda: gumbel_sigmoid(start=-1),
    "gumbel_sigmoid dtype": lambda: gumbel_sigmoid(WHOLE),
    "gumbel_sigmoid_backward key": lambda: OPS.gumbel_sigmoid_backward(X, X, TAU, NO_KEY, 0),
    "gumbel_sigmoid_backward dtype": lambda: OPS.gumbel_sigmoid_backward(WHOLE, WHOLE, TAU, KEY, 0),
    "gumbel_argmax dim": lambda: gumbel_argmax(dim=2),
    "gumbel_argmax empty dim": lambda: gumbel_argmax(torch.zeros(()).expand(HUGE, 1)[:, :0]),
    "gumbel_argmax key": lambda: gumbel_argmax(key=NO_KEY),
    "gumbel_argmax dtype": lambda: gumbel_argmax(WHOLE[:, None]),
    "noise kind": lambda: OPS.noise(INDEX, "white", False),
    "noise dtype": lambda: OPS.noise(X, "gumbel", False),
    "random_words stream": lambda: OPS.random_words(KEY, 9, 0, HUGE),
    "words64 stream": lambda: OPS.words64(KEY, 9, INDEX),
    "permutation stop": lambda: OPS.permutation(HUGE, KEY, 0, HUGE + 1),
    "split key": lambda: OPS.split(NO_KEY, HUGE),
    "weighted_sample k": lambda: weighted_sample(k=HUGE + 1),
    "weighted_sample order": lambda: weighted_sample(order="none"),
    "weighted_sample key": lambda: weighted_sample(key=NO_KEY),
    "weighted_sample start": lambda: weighted_sample(start=-1),
    "weighted_sample quotas": lambda: weighted_sample(**ONE_GROUP),
    "weighted_sample dtype": lambda: weighted_sample(WHOLE),
    "weighted_sample weights": lambda: weighted_sample(-torch.ones(3), HUGE, replacement=True),
    "prepare dtype": lambda: OPS.prepare(WHOLE),
    "weighted_sample prepared key": lambda: OPS.sample_prepared(FEW, *OPS.prepare(FEW), HUGE, "draw", NO_KEY, 0),
    "weighted_sample prepared zeros": lambda: OPS.sample_prepared(FEW, *OPS.prepare(FEW), HUGE, "draw", KEY, 0),
    "race_keys start": lambda: OPS.race_keys(X, False, KEY, -1),
    "race_keys dtype": lambda: OPS.race_keys(WHOLE, False, KEY, 0),
    "draw_targets start": lambda: OPS.draw_targets(KEY, -1, HUGE, 5),
    "fixed_weights dtype": lambda: OPS.fixed_weights(WHOLE, False, 1.0, 5),
    "select k": lambda: select(k=HUGE + 1),
    "select key": lambda: select(key=NO_KEY),
    "select quotas": lambda: select(**ONE_GROUP),
    "select dtype": lambda: select(WHOLE),
    "topk k": lambda: OPS.topk(X2, 3),
    "topk dtype": lambda: OPS.topk(WHOLE, HUGE),
    "topk_encode activation": lambda: OPS.topk_encode(X2, torch.zeros(4, 2), None, 3, "none"),
    "topk_encode dtype": lambda: OPS.topk_encode(WHOLE[:, None], WHOLE[:4, None], None, 3, "relu"),
    "sparse_decode dtype": lambda: OPS.sparse_decode(WHOLE[:, None], INDEX[:, None], WHOLE[:1, None], None),
    "sparse_decode indices": lambda: OPS.sparse_decode(FEW[None], torch.full((1, 5), 7), X2.T[:, :], None),
    "spmm_t num_factors": lambda: OPS.spmm_t(X2, INDEX2, X2, -1),
    "factor_counts num_groups": lambda: OPS.factor_counts(X2, INDEX2, HUGE, INDEX, -1),
    "factor_counts dtype": lambda: OPS.factor_counts(WHOLE[:1, None], INDEX[:1, None], HUGE, None, None),
    "factor_scores reduce": lambda: OPS.factor_scores(X2, INDEX2, FEW, "max", False),
    "factor_scores dtype": lambda: OPS.factor_scores(WHOLE[:, None], INDEX[:, None], FEW, "sum", False),
    "usage_penalty gamma": lambda: usage_penalty(gamma=-1.0),
    "usage_penalty form": lambda: usage_penalty(form="none"),
    "usage_penalty step": lambda: usage_penalty(step=0),
    "usage_penalty scores' dtype": lambda: usage_penalty(WHOLE),
    "usage_penalty counts' dtype": lambda: usage_penalty(counts=WHOLE),
    "usage_update_ decay": lambda: OPS.usage_update_(FEW, INDEX, 2.0),
    "usage_update_ decay of integers": lambda: OPS.usage_update_(FEW.int(), INDEX, 0.5),
    "usage_step_ gamma": lambda: usage_step_(gamma=-1.0),
    "usage_step_ form": lambda: usage_step_(form="none"),
    "usage_step_ decay of integers": lambda: usage_step_(FEW.int(), decay=0.5),
    "usage_step_ dtype": lambda: usage_step_(x=FEW.int()),
}


@pytest.mark.parametrize("call", REFUSED)
def test_refused_before_memory_is_taken(call):
    with pytest.raises((ValueError, IndexError), match=f"^{call.split()[0]}: "):
        REFUSED[call]()


@pytest.mark.parametrize("take", [lambda: X.contiguous(), lambda: torch.empty(HUGE), lambda: gumbel_softmax()])
def test_there_is_no_such_memory(take):
    with pytest.raises(RuntimeError, match="memory"):
        take()
