"""Semantic Photo Manipulation with a Generative Image Prior (SIGGRAPH 2019)."""
