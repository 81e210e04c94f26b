"""Reference implementations of published papers, built from `torchext.nn`."""
