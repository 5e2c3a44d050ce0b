import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from posttrain.errors import UserError
from posttrain.rewards import sandbox
from posttrain.rewards.deadline import deadline
from posttrain.rewards.sandbox import Limits, isolation, run_python, run_python_many
from posttrain.rewards.workers import Worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are run on Linux alone")

QUICK = Limits(seconds=0.3)
IGNORING_SIGNALS = """
import signal
for number in set(range(1, 32)) - {9, 19}:
    signal.signal(number, signal.SIG_IGN)
while True: pass
"""


def test_a_result_and_what_was_printed_come_back():
    found = run_python("print('hello')\ndef f(n): return [n, {'x': n / 4}]", result="f(2)")
    assert (found.value, found.stdout, found.failure) == ([2, {"x": 0.5}], "hello\n", None)


def test_a_program_finds_its_inputs():
    assert run_python("total = sum(numbers)", result="total", inputs={"numbers": [1, 2, 3]}).value == 6


def test_ending_early_is_no_failure():
    assert run_python("x = 3\nimport sys\nsys.exit(1)", result="x").value == 3


@pytest.mark.parametrize(
    ("code", "failure", "error"),
    [
        ("def f(:", "syntax", r"SyntaxError: invalid syntax \(line 1\)"),
        ("x = 1\x00", "syntax", "null bytes"),
        ("(" * 5000, "syntax", "too many nested|MemoryError|RecursionError"),
        ("x = 1\nx / 0", "error", r"ZeroDivisionError: division by zero \(line 2\)"),
        ("nope()", "error", "NameError"),
        ("def f(): return f()\nf()", "error", "RecursionError"),
        ("raise KeyboardInterrupt", "error", "KeyboardInterrupt"),
        ("class E(Exception):\n    def __str__(self): raise E\nraise E", "crashed", ""),
        ("x = object()", "error", "not JSON serializable"),
        ("while True: pass", "time", "0.3 s"),
        ("import time; time.sleep(60)", "time", "0.3 s"),
        ("try:\n    while True: pass\nexcept BaseException: pass\nwhile True: pass", "time", "0.3 s"),
        (IGNORING_SIGNALS, "time", "0.3 s"),
        ("import os; os.closerange(0, 100)\nwhile True: pass", "crashed", ""),
        ("x = bytearray(10**10)", "memory", "MemoryError"),
        ("print('a' * 10**6)", "output", "65,536 bytes"),
        ("while True: print('spam')", "output", "65,536 bytes"),
        ("x = 'a' * 10**6", "output", "65,536 bytes"),
        ("open('x', 'w').write('a' * 10**7)", "error", "File too large"),
        ("import os; os._exit(3)", "crashed", "exit code 3"),
        ("import os; os.abort()", "crashed", "signal"),
        ("import ctypes; ctypes.string_at(0)", "crashed", "signal 11"),
        ("import json; json.dumps = None", "crashed", ""),
        ("import os; os.write(3, b'[' * 50000); os._exit(0)", "crashed", ""),
        ("import os; os.write(3, b'[1]'); os._exit(0)", "crashed", ""),
        ("input()", "error", "EOFError"),
    ],
)  # fmt: skip
def test_whatever_a_program_does_is_an_outcome(code, failure, error):
    # only what never ends is cut off soon: on a busy machine the others take as long as they take
    patient = QUICK if "time" in failure else replace(QUICK, seconds=20)
    found = run_python(code, patient, result="x")
    assert found.failure in failure.split("|")
    if error:
        assert re.search(error, found.error), found.error
    assert run_python("x = 2", result="x").value == 2  # the next one is none the worse


def test_cpu_time_is_limited_too():
    found = run_python("while True: pass", Limits(seconds=20, cpu_seconds=1))
    assert (found.failure, found.error) == ("time", "it took too much CPU time")


def test_a_program_knows_nothing_of_who_started_it(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    found = run_python("import os, sys", result="[dict(os.environ), sorted(sys.modules)]").value
    assert "SECRET_TOKEN" not in found[0]
    assert not {"torch", "posttrain", "numpy"} & set(found[1])


def test_its_folder_is_its_own_and_empty():
    left = "import os\nos.mkdir('d'); open('d/f', 'w').write('x'); os.symlink('/', 'link')"
    assert run_python(left, result="sorted(os.listdir('.'))").value == ["d", "link"]
    assert run_python("import os", result="[os.listdir('.'), os.environ['HOME'] == os.getcwd()]").value == [[], True]


def test_programs_are_worth_the_same_every_time():
    code = "import random\nx = [random.random(), hash('a'), list({'a', 'b', 'c', 'd'})]"
    assert run_python(code, result="x") == run_python(code, result="x")


def test_what_isolation_says_is_what_holds():
    found = asdict(isolation())
    attempts = {
        "network": "import socket; socket.create_connection(('127.0.0.1', 9))",
        "processes": "import subprocess; subprocess.run(['/bin/true'])",
        "files": "open('/etc/passwd').read()",
        "signals": f"import os; os.kill({os.getpid()}, 0)",
    }
    for name, code in attempts.items():
        error = run_python(code).error
        cut = "PermissionError" in error or "BlockingIOError" in error
        assert cut == found[name], (name, error)


def test_files_may_be_opened_by_name(tmp_path):
    (tmp_path / "a").write_text("42")
    if not isolation().files:
        pytest.skip("this kernel does not shut programs off from files")
    code = f"x = open({str(tmp_path / 'a')!r}).read()"
    assert run_python(code, result="x").failure == "error"
    assert run_python(code, result="x", readable=[str(tmp_path)]).value == "42"
    for change in ("open(path, 'w')", "os.truncate(path, 0)", "os.unlink(path)", "os.chmod(path, 0)", "os.utime(path)"):
        found = run_python(f"import os; {change}", inputs={"path": str(tmp_path / "a")}, readable=[str(tmp_path)])
        assert "PermissionError" in found.error, change
    assert (tmp_path / "a").read_text() == "42"


def test_several_run_side_by_side(monkeypatch):
    all_here = threading.Barrier(4, timeout=60)

    def run_together(*given, **named):
        all_here.wait()
        return run_python(*given, **named)

    monkeypatch.setattr(sandbox, "run_python", run_together)
    found = run_python_many([f"x = {n}" for n in range(4)], result="x", at_once=4)
    assert [one.value for one in found] == [0, 1, 2, 3]


def test_threads_do_not_get_each_others_answers():
    wrong = []

    def ask(number):
        wrong.extend(
            n for n in range(20) if run_python(f"x = {number * 100 + n}", result="x").value != number * 100 + n
        )

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_fork_of_the_trainer_has_workers_of_its_own():
    run_python("x = 1")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map(_square, range(6))
    assert found == [0, 1, 4, 9, 16, 25]
    assert _square(7) == 49


def _square(n):
    return run_python("x = n * n", result="x", inputs={"n": n}).value


def test_a_worker_that_breaks_down_is_replaced():
    run_python("x = 1")
    process = sandbox._workers.idle[-1].process
    process.kill()
    process.wait()
    assert run_python("x = 1").failure == "broken"
    assert run_python("x = 1", result="x").value == 1


def test_an_interrupt_does_not_leave_an_answer_for_the_next_one(monkeypatch):
    run_python("x = 1")

    def interrupted(self, size, seconds):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_python("x = 'old'", result="x")
    assert run_python("x = 'new'", result="x").value == "new"


def test_a_deadline_of_the_caller_is_no_outcome_of_the_program():
    run_python("x = 1")
    with pytest.raises(TimeoutError, match=r"more than 0\.1 s"), deadline(0.1):
        run_python("import time; time.sleep(5)")
    assert run_python("x = 'new'", result="x").value == "new"


def test_limits_have_to_be_positive():
    with pytest.raises(UserError, match=r"'seconds'.*found 0"):
        Limits(seconds=0)


def test_other_systems_get_a_clear_error(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match="on Linux alone, and this is darwin"):
        run_python("x = 1")


STARTS_AND_DIES = """
import glob, os, threading, time
from posttrain.rewards import sandbox

def children(process):
    return " ".join(open(path).read() for path in glob.glob(f"/proc/{process}/task/*/children")).split()

threading.Thread(target=sandbox.run_python, args=("import time; time.sleep(60)",), daemon=True).start()
started = []
while len(started) < 2:
    time.sleep(0.05)
    workers = children(os.getpid())
    started = [*workers, *(program for worker in workers for program in children(worker))]
os.write(1, " ".join(started).encode())
os.kill(os.getpid(), 9)
"""


def test_what_was_started_ends_with_the_trainer():
    done = subprocess.run([sys.executable, "-c", STARTS_AND_DIES], capture_output=True, text=True, check=False)
    started = [f"/proc/{process}" for process in done.stdout.split()]
    end = time.monotonic() + 60
    while any(map(os.path.exists, started)) and time.monotonic() < end:
        time.sleep(0.05)
    assert len(started) == 2
    assert not any(map(os.path.exists, started))
    assert done.stderr == ""
