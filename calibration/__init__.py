"""Fitting drafts and exit heads to a target, and quantisation of weights."""
