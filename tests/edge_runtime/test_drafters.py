"""Which drafter a name opens."""

import msgspec
import onnxruntime
import pytest

from edge_runtime.connection import drafter_for
from edge_runtime.drafters import default_drafter, open_drafter
from edgespec.config import EdgeSettings
from edgespec.errors import EngineError, UsageError
from edgespec.manifest import COMPAT_OPSET, Bundle
from edgespec.sampling import Sampling
from engines.drafters.base import DraftRequest
from engines.drafters.ngram import NgramDrafter
from engines.drafters.none import NoDrafter
from engines.machine.profiles import profile
from engines.toy import ToyEngine
from tests.engines.fake_tensorrt import FakeTensorrt


def guesses(drafter, *texts):
    return drafter.guess([DraftRequest(0, text, Sampling()) for text in texts])


def test_a_profile_is_a_model_that_keeps_branches(tiny_bundle):
    for name, opened in (("cpu-int8", "cpu-int8"), ("", "cpu-fp32")):
        drafter = open_drafter(tiny_bundle, name, threads=1)
        assert drafter.name == opened
        main, branch = list(range(40, 60)), list(range(40, 55))
        first, _, again = (guesses(drafter, text)[0] for text in (main, branch, main))
        assert 0 < first.confidence < 1 and first.token not in dict(first.runners_up)
        assert again.token == first.token
        both = guesses(drafter, main, branch)
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
    """The bundle, with these drafts marked as plain."""
    drafts = {
        name: msgspec.structs.replace(draft, opset=COMPAT_OPSET) if name in names else draft
        for name, draft in bundle.manifest.drafts.items()
    }
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, drafts=drafts))


def test_the_first_draft_that_the_runtime_runs_is_taken(tiny_bundle, on_python_310, caplog):
    both = with_plain(tiny_bundle, "cpu-int8", "cpu-fp32")
    assert default_drafter(both, threads=1).name == "cpu-fp32"
    assert caplog.text == "", "no draft was passed over"
    one = with_plain(tiny_bundle, "cpu-int8")
    assert open_drafter(one, "", threads=1).name == "cpu-int8"
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("draft cpu-int8 is taken instead of cpu-fp32: ONNX Runtime 1.23.2 is")


def test_where_no_draft_runs_the_user_hears_what_to_do(tiny_bundle, on_python_310):
    words = r"\(cpu-fp32, cpu-int8\) runs here; use --drafter ngram, or see to the first: ONNX .*"
    with pytest.raises(EngineError, match=words + "cpu-fp32.*--profile cpu-compat"):
        open_drafter(tiny_bundle, "", threads=1)
    assert profile("cpu-compat").opset == COMPAT_OPSET
    without = msgspec.structs.replace(tiny_bundle.manifest, drafts={})
    assert default_drafter(Bundle(tiny_bundle.folder, without), threads=1).name == "ngram"


@pytest.fixture
def of_a_jetson(tiny_bundle, monkeypatch):
    """A bundle for a Jetson, with a draft for its CPU, where TensorRT has not been installed."""
    monkeypatch.setattr("engines.tensorrt_backend.api.MODULES", ("no_such_module",))
    first, second = tiny_bundle.manifest.drafts.values()
    drafts = {"jetson-orin": first, "cpu-compat": second}
    return Bundle(tiny_bundle.folder, msgspec.structs.replace(tiny_bundle.manifest, drafts=drafts))


def test_a_draft_for_tensorrt_is_passed_over_where_it_cannot_be_opened(of_a_jetson, caplog):
    assert open_drafter(of_a_jetson, "", threads=1).name == "cpu-compat"
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(
        "draft cpu-compat is taken instead of jetson-orin: TensorRT is not installed"
    )


def test_a_draft_that_was_built_for_nobody_is_passed_over(of_a_jetson, monkeypatch, caplog):
    monkeypatch.setattr("engines.tensorrt_backend.target.load", lambda: FakeTensorrt(None))
    assert open_drafter(of_a_jetson, "", threads=1).name == "cpu-compat"
    assert "has no engine of draft/cpu-fp32/model.onnx; build it: edgespec build" in caplog.text


def test_a_draft_that_was_asked_for_by_name_is_not_replaced(of_a_jetson):
    with pytest.raises(EngineError, match=r"^TensorRT is not installed"):
        open_drafter(of_a_jetson, "jetson-orin", threads=1)
    alone = {"jetson-orin": of_a_jetson.manifest.drafts["jetson-orin"]}
    manifest = msgspec.structs.replace(of_a_jetson.manifest, drafts=alone)
    with pytest.raises(EngineError, match="use --drafter ngram, or see to the first: TensorRT is "):
        open_drafter(Bundle(of_a_jetson.folder, manifest), "", threads=1)


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:1", "tcp://cloud.example:5555"])
def test_a_device_beside_its_cloud_leaves_it_the_cores(tiny_bundle, endpoint, monkeypatch):
    settings = EdgeSettings(connect=endpoint, drafter="cpu-int8", threads=1)
    opened = []
    monkeypatch.setattr(
        "engines.onnxruntime_backend.engine.load_draft",
        lambda bundle, name, settings: opened.append(settings) or ToyEngine(),
    )
    drafter_for(tiny_bundle, settings)
    assert (opened[0].spin_us > 0) == ("127" not in endpoint)
