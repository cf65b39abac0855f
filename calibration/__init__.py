"""Quantisation of weights; the place where drafts and exit heads are fitted to a target."""
