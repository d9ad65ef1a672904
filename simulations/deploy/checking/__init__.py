"""``kdfed deploy check``: what of a deployment is wrong, in words, all at once.

Reading order: :mod:`~simulations.deploy.checking.findings`, then one module for each kind of thing that can
be wrong, then :mod:`~simulations.deploy.checking.folders`, which asks them.
"""
