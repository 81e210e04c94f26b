"""Golden files: what the published implementations compute, to be met by the layers and networks.

`recipe.py` reads a file and rebuilds its weights and inputs, `adapters/` knows the classes,
`statements.py` runs the Python in a file's `call`, `runner.py` computes and compares.
A new class needs an adapter only: see `adapters/__init__.py`.
"""
