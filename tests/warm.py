"""Processes that need no start-up: forks of one that has imported and run everything before.

A fresh Python takes eight seconds of a core until its first request; what becomes of a process that
is interrupted or killed later is the same.
"""

import multiprocessing
import os
import runpy
import signal
import sys

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.preload"])


class Process:
    """A script as Python would run it, or the module after -m; its streams are files in `folder`.

    variables: set on top of the environment of the first such process.
    """

    def __init__(self, folder, arguments, variables, *, cwd, stdin=os.devnull):
        folder.mkdir(parents=True, exist_ok=True)
        self._notes = folder / "stderr"
        streams = str(stdin), str(folder / "stdout"), str(self._notes)
        process = _CONTEXT.Process(target=_child, args=(arguments, variables, str(cwd), streams))
        process.start()
        self._process, self.pid = process, process.pid

    def poll(self):
        """The exit code, below 0 for a signal; None while it runs."""
        return self._process.exitcode

    @property
    def returncode(self):
        return self.poll()

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self, timeout=170):
        self._process.join(timeout)
        assert self.poll() is not None
        return self.poll()

    def communicate(self, timeout=170):
        """Nothing and what it wrote to stderr, as of a process of `subprocess`."""
        self.wait(timeout)
        return None, self._notes.read_text()


def _child(arguments, variables, cwd, streams):
    os.setsid()
    for number, path in enumerate(streams):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC if number else os.O_RDONLY
        os.dup2(os.open(path, flags), number)
    os.environ.update(variables)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The parent's output is not the child's, nor is the pytest that it may have been.
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "w" if n else "r") for n in range(3))
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        paths = variables.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:0] = [os.path.dirname(os.path.abspath(arguments[0])), *filter(None, paths)]
        runpy.run_path(arguments[0], run_name="__main__")
