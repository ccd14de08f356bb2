"""Where jobs run: long temp folders, no home, ASCII terminals, dead addresses, files that hide modules."""

import io
import os
import random
import socket
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

from d3hr_ray.config import RunError
from d3hr_ray.runtime import surroundings
from d3hr_ray.runtime.cluster import connect
from d3hr_ray.runtime.surroundings import (
    adapt,
    hidden_here,
    lend_token,
    out_of_the_way,
    ray_temp,
    require_answer,
    shared_memory,
    start_patiently,
)


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


def test_a_dead_ray_address_is_told_at_once_with_what_asked_for_it(closed_port, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    monkeypatch.setitem(sys.modules, "ray", None)  # it is told before Ray is imported
    with pytest.raises(ValueError, match=rf"RAY_ADDRESS=127.0.0.1:{closed_port}, set .* no Ray .* unset RAY_ADDRESS"):
        connect(None)
    with pytest.raises(ValueError, match=r"--address ray://localhost:1: no Ray .* give another address"):
        connect("ray://localhost:1")
    with pytest.raises(ValueError, match="is a dashboard's address"):
        connect("http://127.0.0.1:8265")
    require_answer("auto", "--address auto")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        require_answer(f"127.0.0.1:{listening.getsockname()[1]}", "--address")


def test_a_missing_token_is_one_line_that_says_where_it_goes(monkeypatch):
    class AuthenticationError(Exception):
        pass

    def init(**_: object) -> None:
        raise AuthenticationError("no authentication token was found")

    fake = SimpleNamespace(
        init=init, is_initialized=lambda: False, exceptions=SimpleNamespace(AuthenticationError=AuthenticationError)
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
    with pytest.raises(ValueError, match=r"--address auto: .* RAY_AUTH_MODE=token .* RAY_AUTH_TOKEN"):
        connect("auto")


@pytest.mark.parametrize(("variable", "folder", "short"), [
    ("TMPDIR", "/scratch/" + "x" * 111, "/tmp/ray"), ("RAY_TMPDIR", "/scratch/" + "x" * 111, "/tmp/ray"),
    ("TMPDIR", "/scratch/job-1234567", None), ("TMPDIR", "", None),
])  # fmt: skip
def test_a_long_tmpdir_is_not_rays(variable, folder, short, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, folder)
    assert ray_temp() == short


def test_a_local_ray_gets_a_token_that_leaves_nothing_in_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    lend_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64 and not list(tmp_path.iterdir())
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("own")
    lend_token()
    assert os.environ["RAY_AUTH_TOKEN"] == ""


def test_ascii_output_and_a_user_without_a_name_or_home(monkeypatch):
    bare = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", bare)
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"]})
    monkeypatch.setattr(surroundings.getpass, "getuser", lambda: (_ for _ in ()).throw(KeyError("uid not found: 4711")))
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    adapt()
    print("65.0 ± 1.2 für süß")
    bare.flush()
    assert bare.buffer.getvalue() == b"65.0 \\xb1 1.2 f\\xfcr s\\xfc\\xdf\n"
    assert os.environ["LOGNAME"] == f"uid{os.getuid()}" and os.environ["HOME"] == tempfile.gettempdir()


def test_files_that_would_hide_modules_from_workers_are_got_out_of_the_way(monkeypatch, tmp_path):
    for name in ("random.py", "numpy/__init__.py", "mine.py", "notes/a.txt", "data/__init__.py", "inputs.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert random.__file__ and np.__file__
    found = hidden_here()
    with out_of_the_way(found):
        assert set(found) >= {"numpy/", "random.py"} and not {"mine.py", "notes/", "data/"} & set(found)
        assert os.getcwd() == str(ROOT / "d3hr_ray" / "assets")
    assert os.getcwd() == str(tmp_path)
    monkeypatch.chdir(ROOT)
    assert hidden_here() == []


def test_little_shared_memory_is_told(monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=16384, f_frsize=4096))
    assert shared_memory() == 64 << 20


def test_a_ray_that_does_not_start_is_started_again_and_then_one_line():
    late, other, calls = Exception("The current node timed out during startup."), OSError("no such file"), []

    def attempt(*outcomes: Exception | None) -> None:
        left, calls[:] = list(outcomes), []

        def start() -> None:
            calls.append("start")
            if error := left.pop(0):
                raise error

        start_patiently(start, lambda: calls.append("undo"))

    attempt(late, None)
    assert calls == ["start", "undo", "start"]
    with pytest.raises(RunError, match="3 times in a row"):
        attempt(late, late, late)
    assert calls == ["start", "undo"] * 3
    with pytest.raises(OSError, match="no such file"):
        attempt(other)
    assert calls == ["start"]


@pytest.mark.slow
def test_a_run_in_hostile_surroundings(tmp_path):
    """A TMPDIR of 120 characters, no home, an ASCII terminal, and a file that hides one of Python's from workers."""
    temp = tmp_path / ("t" * (119 - len(str(tmp_path))))
    temp.mkdir()
    (tmp_path / "random.py").write_text("raise ImportError('the wrong random')")
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "LC_", "LANG"))}
    hostile = {"TMPDIR": str(temp), "HOME": "/proc", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    flags = "--limit-per-class 4 --ipc 1 --timesteps 100 --actors 1 1"
    command = [sys.executable, str(ROOT / "jobs" / "distill.py"), *flags.split()]
    for _ in range(3):  # on a busy machine Ray may not start in its 30 s
        ran = subprocess.run(command, cwd=tmp_path, env=bare | hostile, capture_output=True)
        if b"did not start" not in ran.stderr:
            break
    said = ran.stderr.decode("ascii")
    assert ran.returncode == 0, said
    assert "random.py in" in said and "Traceback" not in said and "matplotlib" not in said
    assert len(list((tmp_path / "runs" / "digits" / "distilled").glob("*/train/*/*.png"))) == 10
