"""Evaluation protocols: pure functions of tables of features, and what fills the tables from images."""
