"""A session's input to the decision, from its drafts and its terms."""

from __future__ import annotations

from cloud_runtime.decision import Outlook
from cloud_runtime.sessions import CloudSession

READING_WITHOUT_DEVICE_TOKENS = 2
"""Tokens to read that are charged to the cloud draft where the device does not draft.

Reading once then serves the whole answer.
"""


def outlook(
    session: CloudSession, now: float, most: int, weight: float = 1.0, *, shared: bool = False
) -> Outlook:
    """Returns a session's input to the decision.

    `most`: draft tokens that are of use. `shared`: other sessions are in the step.
    """
    drafts, terms, policy = session.drafts, session.terms, session.policy
    path = session.best_path()
    by_cloud = path is not None and path is drafts.cloud_path
    arrived = path.confidences_ahead(session.length)[:most] if path is not None else []
    estimate = drafts.cloud_estimate if by_cloud else drafts.paths.estimate
    more = len(arrived) < most
    expected_s: list[float] = []
    if more and terms.drafting and terms.decoding and not by_cloud and session.opened:
        expected_s = drafts.arrivals.expected_s(path, session.length, now)
    cloud_draft = more and terms.decoding and session.may_cloud_draft(shared=shared)
    unread = session.unread if cloud_draft else 1
    reading = policy.reading_tokens if terms.drafting else READING_WITHOUT_DEVICE_TOKENS
    return Outlook(
        arrived=[estimate.probability(confidence) for confidence in arrived],
        expected_s=expected_s,
        expected_confidence=drafts.paths.estimate.acceptance,
        cloud_draft=cloud_draft,
        cloud_draft_confidence=drafts.cloud_estimate.acceptance,
        unread_tokens=min(unread, reading),
        pending_tokens=session.pending,
        lockstep=terms.lockstep,
        weight=weight,
    )
