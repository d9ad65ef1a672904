"""What kdfed uses of other libraries beyond their documented interfaces: one module a library.

The rule: a name that a library does not document may move in any release, so it is used here and nowhere
else, not even in tests. Each entry says why it is needed, which releases it was seen in, and what to do when
it has moved. ``tests/kdfed/test_private.py`` exercises every entry, and finds whoever goes past this package.

Public, and free to use elsewhere: ``flwr.app``, ``flwr.serverapp``, ``flwr.serverapp.strategy``,
``flwr.clientapp``, ``flwr.clientapp.mod`` and ``flwr.simulation.run_simulation``; Ray's names without
underscore; the partitioners of ``flwr_datasets``.

No other module of kdfed may import :mod:`kdfed.private.flwr` or :mod:`kdfed.private.ray`, but for those that
``tests/test_imports.py`` lists.
"""
