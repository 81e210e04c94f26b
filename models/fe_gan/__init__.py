"""Fashion Editing with Adversarial Parsing Learning (CVPR 2020)."""
