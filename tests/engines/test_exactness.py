"""The probe finds what it is made to find."""

import json

import pytest
from click.testing import CliRunner

from cli.main import main
from engines.exact_price import STEPS, Price
from engines.exactness import WAYS, Case, ExactnessReport, measure, report_cases
from engines.toy import ToyEngine

SINGLES = "one token at a time, in a batch of three"


class Off(ToyEngine):
    """A machine on which one new token alone takes another path, as ONNX Runtime's does."""

    def _choices(self, row, layer):
        choices = super()._choices(row, layer)
        error = 1e-3 if len(row.tokens) == 1 else 0.0
        return choices._replace(logits=choices.logits + error)


class Leaky(ToyEngine):
    """A machine on which other rows of a batch show."""

    def run(self, rows):
        for step in super().run(rows):
            if len(rows) > 1:
                choices = [c and c._replace(logits=c.logits * 2.0) for c in step.choices]
                step = step._replace(choices=choices)
            yield step


def test_an_exact_machine_passes():
    cases = measure(lambda threads: ToyEngine())
    assert len(cases) == 2 * len(WAYS)
    assert all(case.identical and case.largest == 0 for case in cases)
    assert "exact: every way" in report_cases(cases)


@pytest.mark.parametrize(
    ("engine", "found"),
    [
        (Off, {"prefill in ragged chunks, growing", "one token at a time", SINGLES}),
        (Leaky, {"in a ragged batch of four", SINGLES}),
    ],
)
def test_what_differs_is_named_with_its_size(engine, found):
    cases = measure(lambda threads: engine(), threads=(1,))
    assert {c.name.rpartition(",")[0] for c in cases if not c.identical} == found
    report = report_cases(cases)
    assert "not exact" in report
    assert "off by" in report


def test_a_back_end_that_pays_says_what(tiny_bundle):
    """Torch for real: exact as it comes, not exact without, and the ratio of their step times."""
    result = CliRunner().invoke(
        main, ["doctor", "--exactness", str(tiny_bundle.folder), "--backend", "torch", "--json"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["backend"] == "torch" and found["exact"]
    assert len(found["cases"]) == len(found["faster"]) == 2 * len(WAYS)
    assert not all(case["identical"] for case in found["faster"])
    assert [price["name"] for price in found["prices"]] == list(STEPS)
    for price in found["prices"]:
        assert price["ratio"] == price["exact_ms"] / price["fast_ms"] > 0


def test_the_report_has_both_and_the_prices():
    case = Case("one token at a time, 1 thread", True, 24, 0.0)
    off = Case("verify of 2 tokens, 1 thread", False, 24, 1e-6)
    finding = ExactnessReport("torch", [case], [case, off], [Price("one token", 3.0, 2.0)])
    report = finding.report()
    assert finding.exact
    assert (
        report.index("exact: every way") < report.index("torch-fast:") < report.index("not exact")
    )
    assert "1.50  one token (3.0 ms, not 2.0)" in report
    assert not ExactnessReport("torch", [off], [], []).exact


def test_a_back_end_that_there_is_not(tiny_bundle):
    result = CliRunner().invoke(
        main, ["doctor", "--exactness", str(tiny_bundle.folder), "--backend", "abacus"]
    )
    assert result.exit_code == 2 and "is not one of" in result.stderr
