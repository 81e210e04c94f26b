"""Short programs: published networks, written as their users write them, made faster in one line.

    python -m examples.region_norm_generator

from the repository's root. Each runs the network as it is and accelerated, side by side.
"""
