"""The error that users see as one sentence."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that a user can mend.

    The message is one sentence: the key or file, the value found, and what is allowed or what to run. The commands
    print it without a traceback and exit with a code other than 0.
    """
