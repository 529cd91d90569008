"""Evaluation: protocol, metrics, report."""
