"""Quantising a model to int8 and int4."""
