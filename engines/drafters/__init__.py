"""Drafters: guess the next token of a session (`base`): a model, prompt lookup, or none."""
