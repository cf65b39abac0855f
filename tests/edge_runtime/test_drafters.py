"""Which drafter a name opens."""

import msgspec
import onnxruntime
import pytest

from edge_runtime.drafters import COMPAT, default_drafter, open_drafter
from edgespec.errors import EngineError, UsageError
from edgespec.manifest import COMPAT_OPSET, Bundle
from edgespec.profiles import profile
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


@pytest.fixture
def on_python_310(monkeypatch):
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")


def with_plain(bundle, *names):
    """The bundle, with those of its drafts said to be plain."""
    drafts = {
        name: msgspec.structs.replace(draft, opset=COMPAT_OPSET) if name in names else draft
        for name, draft in bundle.manifest.drafts.items()
    }
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, drafts=drafts))


def test_the_first_draft_that_the_runtime_runs_is_taken(tiny_bundle, on_python_310):
    assert default_drafter(with_plain(tiny_bundle, "cpu-int8")) == "cpu-int8"
    assert default_drafter(with_plain(tiny_bundle, "cpu-int8", "cpu-fp32")) == "cpu-fp32"


def test_where_no_draft_runs_the_user_hears_what_to_do(tiny_bundle, on_python_310):
    with pytest.raises(EngineError, match=f"--profile {COMPAT}, or use --drafter ngram"):
        open_drafter(tiny_bundle, "", threads=1)
    assert profile(COMPAT).opset == COMPAT_OPSET
    without = msgspec.structs.replace(tiny_bundle.manifest, drafts={})
    assert default_drafter(Bundle(tiny_bundle.folder, without)) == "ngram"
