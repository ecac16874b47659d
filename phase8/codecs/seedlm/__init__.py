"""SeedLM (arXiv 2410.10714): a block of weights is a seeded basis times a few small coefficients."""
