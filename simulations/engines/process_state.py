"""What a run changes in the process that it runs in, and puts back: other programs call engines too."""

from __future__ import annotations

import faulthandler
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from kdfed.device import convolutions_restored
from kdfed.private.flwr import identity, restore


@contextmanager
def preserved() -> Iterator[None]:
    """Restore, on leaving, whatever of the process a run or a library beneath it changes.

    That is the environment, torch's threads and cuDNN's arithmetic, the global random generators (Python's,
    NumPy's, torch's), Flower's identity, loggers, warnings' filters, signal handlers, ``sys.excepthook`` and
    the fault handler.
    Modules that were imported stay, and so does ``sys.path``, from which they import more.

    Examples
    --------
    >>> import os
    >>> with preserved():
    ...     os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    >>> "RAY_USAGE_STATS_ENABLED" in os.environ
    False
    """
    environment, threads, hook = dict(os.environ), torch.get_num_threads(), sys.excepthook
    draws = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    part = identity()
    loggers = [(logger, logger.level, list(logger.handlers), logger.propagate) for logger in _loggers()]
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    faults = faulthandler.is_enabled()
    try:
        with warnings.catch_warnings(), convolutions_restored():
            yield
    finally:
        for key in set(os.environ) - set(environment):
            del os.environ[key]
        os.environ.update(environment)
        torch.set_num_threads(threads)
        sys.excepthook = hook
        random.setstate(draws[0])
        np.random.set_state(draws[1])
        torch.set_rng_state(draws[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        restore(part)
        for logger, level, own, propagate in loggers:
            logger.setLevel(level)
            logger.handlers[:] = own
            logger.propagate = propagate
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None and signal.getsignal(number) is not handler:
                    signal.signal(number, handler)
        if not faults:
            faulthandler.disable()


def _loggers() -> list[logging.Logger]:
    known = logging.Logger.manager.loggerDict.values()
    return [logging.getLogger(), *(logger for logger in known if isinstance(logger, logging.Logger))]
