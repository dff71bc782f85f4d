"""What capture needs in one run of Pants, for rules that cannot ask the engine for it.

    GraphScheduler.new_session -> RunCapture in the session's values -> options read once
    first process -> ready_daemon: a daemon that answers, started if need be; once for the run

wrap_byname.py finds it in the session of the process that asks. Two runs never have equal ones, so
whatever was made with one is looked at again in the next run. Blocks, but asks the engine only in
`read_options`, which is called outside of it.
"""

from __future__ import annotations

import threading
from typing import Any, Optional, Union

from pants.engine.fs import Digest
from pants.engine.internals.scheduler import ExecutionError
from pants.engine.internals.selectors import Params
from rootseal.errors import CaptureError, Error

from rootseal_pants.compat import requested
from rootseal_pants.settings import ReadyDaemon, Settings, daemon_request, make_ready


class RunCapture:
    """Options and daemon of one run; both are asked for once, and so is what fails.

    Attributes:
        launcher: The directory with the launcher in the engine's store, once somebody put it there.
    """

    def __init__(self) -> None:
        self.launcher: Optional[Digest] = None
        self._settings: Union[Settings, BaseException, None] = None
        self._daemon: Union[ReadyDaemon, Error, OSError, None] = None
        self._lock = threading.Lock()

    def read_options(self, session: Any) -> None:
        """Read the options of this session. What is wrong with them is for who needs them.

        So goals that run no process end as in plain Pants.
        """
        try:
            (self._settings,) = requested(session, Settings, [Params()])
        except ExecutionError as error:
            self._settings = error.wrapped_exceptions[0] if error.wrapped_exceptions else error

    def settings(self) -> Settings:
        """The options, or the error that reading them ended with."""
        if self._settings is None:
            raise CaptureError("a process was asked for before the options of the run were read")
        if isinstance(self._settings, BaseException):
            raise self._settings
        return self._settings

    def ready_daemon(self) -> ReadyDaemon:
        """A daemon that answered in this run, or the error that looking for one ended with."""
        request = daemon_request(self.settings())
        with self._lock:
            if self._daemon is None:
                try:
                    self._daemon = make_ready(request)
                except (Error, OSError) as error:
                    self._daemon = error
            if isinstance(self._daemon, ReadyDaemon):
                return self._daemon
            raise self._daemon
