"""Every claim of speed or memory: `python -m benchmarks` measures, prints a table, draws a chart.

One op is two files of the same name: `OP.py` holds its cases and `setup`, `baselines/OP.py` the op
sequence that users run today. The harness finds them by name.
"""
