"""Evaluation: folders of restored images against benchmarks, by the field's conventions; scores of saved files."""
