"""Distilling a draft from a target."""
