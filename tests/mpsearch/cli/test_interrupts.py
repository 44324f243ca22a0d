"""Being stopped: once, twice, by each signal, in Python and in a long call of C; and streams that are not there."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

# A call of C that lets other threads run and takes many minutes; its process must not.
LONG = """
import hashlib, sys, time
from mpsearch.cli import main as program

def application():
    def call(arguments, standalone_mode):
        print("ready", flush=True)
        {body}
    return call

program.application = application
program.main()
"""
IN_C = 'hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2**31 - 1)'
IN_PYTHON = "time.sleep(600)"
DEAF = "exec('''while True:\\n try: time.sleep(600)\\n except BaseException: pass''')"


# What starts the tests may ignore signals, as nohup and `&` in a script do, and processes inherit that.
HEARD = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""


def started(body: str) -> subprocess.Popen[str]:
    script = HEARD + LONG.format(body=body)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", script], **pipes)  # type: ignore[call-overload]
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process  # type: ignore[no-any-return]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (IN_PYTHON, [signal.SIGINT]),
        (IN_C, [signal.SIGINT]),
        (IN_C, [signal.SIGINT, signal.SIGINT]),
        (IN_C, [signal.SIGTERM]),
        (IN_PYTHON, [signal.SIGHUP]),
        (DEAF, [signal.SIGINT]),
    ],
    ids=str,
)
def test_a_signal_ends_the_process_with_one_line(body: str, sent: list[signal.Signals]) -> None:
    process = started(body)
    for number in sent:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)  # the call itself would take longer
    assert process.returncode == 128 + sent[0]
    assert out == ""
    assert err == "mpsearch: interrupted; the same command goes on from here\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_what_is_ignored_stays_ignored() -> None:
    body = "import signal, os; os.kill(os.getpid(), signal.SIGHUP); print('alive')"
    script = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + LONG.format(body=body)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "ready\nalive\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize(
    ("line", "code", "err"),
    [
        ("{it} devices >&-", 0, ""),
        ("{it} devices <&- >&- 2>&-", 0, ""),
        ("{it} devicess <&- >&- 2>&-", 2, ""),
        ("LC_ALL=POSIX PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 {it} devices npu-int4 >/dev/null", 0, ""),
        ("COLUMNS=40 NO_COLOR=1 {it} devices >/dev/null", 0, ""),
        ("env -u HOME {it} devices >/dev/null", 0, ""),
        ("{it} devices > /dev/full", 2, "mpsearch: the system refuses a file or stdout (No space left on device)"),
    ],
)
def test_streams_and_surroundings(line: str, code: int, err: str) -> None:
    command = line.format(it=f"{sys.executable} -m mpsearch")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(err)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_a_reader_that_stops_early_is_no_fault() -> None:
    command = f"{sys.executable} -m mpsearch devices | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1, 141)  # all was written before, or not
    assert done.stderr == ""
