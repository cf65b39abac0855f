"""Which drafter a name opens."""

import pytest

from edge_runtime.drafters import open_drafter
from edgespec.errors import UsageError
from edgespec.sampling import Sampling
from engines.drafting import NgramDrafter, NoDrafter


def test_a_profile_is_a_model_that_keeps_branches(tiny_bundle):
    for name, opened in (("cpu-int8", "cpu-int8"), ("", "cpu-fp32")):
        drafter = open_drafter(tiny_bundle, name, threads=1)
        assert drafter.name == opened
        main, branch = list(range(40, 60)), list(range(40, 55))
        first, _, again = (drafter.guess([text], Sampling())[0] for text in (main, branch, main))
        assert 0 < first.sure < 1 and first.token not in dict(first.others)
        assert again.token == first.token
        both = drafter.guess([main, branch], Sampling())
        assert both[0].token == first.token


def test_lookup_and_nobody_need_no_model(tiny_bundle):
    assert isinstance(open_drafter(tiny_bundle, "ngram", threads=1), NgramDrafter)
    assert isinstance(open_drafter(tiny_bundle, "none", threads=1), NoDrafter)


def test_a_name_that_is_none_is_refused_with_those_that_are(tiny_bundle):
    with pytest.raises(UsageError, match="choose one of: cpu-fp32, cpu-int8, ngram, none"):
        open_drafter(tiny_bundle, "gpu", threads=1)
