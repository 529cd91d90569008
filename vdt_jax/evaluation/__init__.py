"""Evaluation of a model, task by task: options, protocol, metrics, report."""
