import pytest

from edgespec.session import Session


def session(tokens=(1, 2), prompt=2, most=5, end=(9,)):
    return Session(list(tokens), prompt, most, frozenset(end))


def test_commits_until_the_limit_inside_a_round():
    state = session()
    assert state.commit([3, 4, 5]) == [3, 4, 5]
    assert state.remaining == 2
    assert state.commit([6, 7, 8]) == [6, 7]
    assert (state.finish, state.remaining, state.answer) == ("length", 0, [3, 4, 5, 6, 7])


def test_ends_at_end_of_text_inside_a_draft():
    state = session()
    assert state.commit([3, 9, 4, 9]) == [3, 9]
    assert state.finish == "end"
    assert state.commit([1]) == []


def test_end_of_text_in_the_prompt_does_not_end_the_answer():
    state = session(tokens=(9, 2))
    assert state.finish == ""


def test_end_of_text_as_the_last_allowed_token_is_an_end():
    state = session(most=1)
    state.commit([9])
    assert state.finish == "end"


def test_a_session_opened_again_with_a_whole_answer_is_finished():
    assert session(tokens=(1, 2, 3, 9)).finish == "end"
    assert session(tokens=(1, 2, 3, 4), most=2).finish == "length"


@pytest.mark.parametrize("prompt", [0, 3])
def test_a_prompt_longer_than_the_tokens_is_refused(prompt):
    with pytest.raises(ValueError, match="prompt"):
        session(prompt=prompt)
