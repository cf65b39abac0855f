"""The probe finds what it is made to find."""

import dataclasses

import pytest

from engines.exactness import WAYS, measure, report_cases
from engines.toy import ToyEngine


class Off(ToyEngine):
    """A machine on which one new token alone takes another path, as ONNX Runtime's does."""

    def _choices(self, row, layer):
        choices = super()._choices(row, layer)
        error = 1e-3 if len(row.tokens) == 1 else 0.0
        return dataclasses.replace(choices, logits=choices.logits + error)


class Leaky(ToyEngine):
    """A machine on which other rows of a batch show."""

    def run(self, rows):
        for step in super().run(rows):
            if len(rows) > 1:
                step = dataclasses.replace(
                    step,
                    choices=[
                        c and dataclasses.replace(c, logits=c.logits * 2.0) for c in step.choices
                    ],
                )
            yield step


def test_an_exact_machine_passes():
    cases = measure(lambda threads: ToyEngine())
    assert len(cases) == 2 * len(WAYS)
    assert all(case.identical and case.largest == 0 for case in cases)
    assert "exact: every way" in report_cases(cases)


@pytest.mark.parametrize(
    ("engine", "found"),
    [
        (Off, {"prefill in ragged chunks, growing", "one token at a time"}),
        (Leaky, {"in a ragged batch of four"}),
    ],
)
def test_what_differs_is_named_with_its_size(engine, found):
    cases = measure(lambda threads: engine(), threads=(1,))
    assert {c.name.rpartition(",")[0] for c in cases if not c.identical} == found
    report = report_cases(cases)
    assert "not exact" in report
    assert "off by" in report
