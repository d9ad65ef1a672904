"""``kdfed deploy``: what a SuperLink and devices need to run kdfed, written, checked and watched.

Reading order: :mod:`~simulations.deploy.settings` (the participants' file), :mod:`~simulations.deploy.layout`
(what a deployment's folder holds), :mod:`~simulations.deploy.credentials`,
:mod:`~simulations.deploy.writing`, :mod:`~simulations.deploy.checking`, :mod:`~simulations.deploy.status`.

``kdfed deploy check`` runs on a device, where the extra ``sim`` is not installed and where PyTorch may be
broken: what it imports needs neither.
"""
