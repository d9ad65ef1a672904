"""A device's SuperNode: its command line, and the process that runs it for ``kdfed node``.

``python -m clients.supernode NEWS PARENT ARGUMENTS...`` runs Flower's SuperNode with these arguments. To the
file descriptor NEWS it writes an empty line for each message, and in the end, where nobody asked for it, a
line that says why.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from clients.device_folder import DeviceFolder
from kdfed.errors import one_line
from kdfed.private.flwr import SuperNode

HOST = "127.0.0.1"
"""Where a SuperNode serves its client: nobody else can reach it there."""

_ESCAPED = {'"': "\\u0022", "\\": "\\\\"}


def arguments(settings: DeviceFolder, isolation: str) -> list[str]:
    """Return the words after ``flower-supernode``.

    Parameters
    ----------
    settings
        With absolute paths.
    isolation
        ``process``: somebody else runs the ClientApp. ``subprocess``: Flower does.
    """
    words = ["--superlink", settings.superlink, "--host", HOST, "--port", str(settings.port)]
    words += ["--isolation", isolation]
    if settings.insecure:
        words.append("--insecure")
    if settings.root_certificates is not None:
        words += ["--root-certificates", str(settings.root_certificates)]
    if settings.key is not None:
        words += ["--auth-supernode-private-key", str(settings.key)]
    given = settings.node_config.model_dump(exclude_none=True)
    return [*words, "--node-config", node_config_text({k: v for k, v in given.items() if v != ""})]


def node_config_text(values: Mapping[str, str | int]) -> str:
    r"""Return a node-config in the form of the command line, which is TOML but for its spaces.

    Flower looks for the next ``"`` to find a text's end, so one inside is written as a number.

    Examples
    --------
    >>> print(node_config_text({"participant": "north", "data": 'csv:/my "own".csv', "threads": 1}))
    participant="north" data="csv:/my \u0022own\u0022.csv" threads=1
    """
    return " ".join(
        f"{key}={value if isinstance(value, int) else _quoted(value)}" for key, value in values.items()
    )


def _quoted(text: str) -> str:
    escaped = (_ESCAPED.get(c) or (c if c.isprintable() else f"\\U{ord(c):08x}") for c in text)
    return f'"{"".join(escaped)}"'


def explained(said: str) -> str:
    """Return why a SuperNode ended, for who has to mend it.

    Parameters
    ----------
    said
        What Flower said; its exit codes are listed in its documentation.
    """
    words = one_line(said.partition("For more information")[0], 300)
    for mark, meaning in _MEANINGS.items():
        if mark in said:
            return f"{meaning} ({words})"
    return words


_MEANINGS = {
    "Failed to activate SuperNode": (
        "the SuperLink refused this device: either it crashed or was killed less than 60 s ago and is still "
        "taken for present (exit 305; wait 60 s, then start it again), or its key is not registered there "
        "(flwr supernode register key.pub)"
    ),
    "All SuperNodes must be registered": (
        "the SuperLink lets in registered devices alone, and this folder has no key"
    ),
    "Unable to parse the private key": (
        "the folder's key is no private key of the curve P-384 in the form that ssh-keygen writes"
    ),
    "certificate verify failed": (
        "the SuperLink's certificate does not fit this folder's root certificate, or names another host"
    ),
}


def main(words: Sequence[str]) -> int:
    """Run a SuperNode; return 0 where it was asked to end."""
    news, parent = int(words[0]), int(words[1])
    said = SuperNode(lambda: _tell(news, "")).run(words[2:], parent)
    if said:
        _tell(news, explained(said))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if said else 0)  # its HTTP server's thread may be left, and would be waited for


def _tell(news: int, line: str) -> None:
    try:
        os.write(news, f"{line}\n".encode())
    except OSError:  # nobody is left who reads
        return


if __name__ == "__main__":
    main(sys.argv[1:])
