"""Full SAE encodes that keep a few numbers of each token, or of each latent, and nothing else.

Steering does not need them. :func:`~saif_kernels.encode_moments` is how latents are identified.
"""
