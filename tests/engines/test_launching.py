"""What makes a sweep outlive its dead, without an engine: pools, notes, turns, slots."""

import inspect
import json
import os
import pickle
import re
import sys
import types
import warnings

import hydra
import pytest
import torch
import toys
from omegaconf import OmegaConf

from mad import progress
from mad.cli import configs, grid, launchers, sweep, sweep_folder, task
from mad.device import choose, use_threads
from mad.errors import MadError
from mad.progress import bar


def slot(file):
    """A call that leaves its slot in a file; the pool's processes need none of this module's imports for it."""
    return os.system, (f"echo ${launchers.SLOT} > '{file}'",), {}


def test_a_killed_process_takes_one_job_with_it(tmp_path):
    death = (os._exit, (9,), {})
    calls = [death if number in (0, 3) else slot(tmp_path / str(number)) for number in range(6)]
    assert len(launchers.Pool(n_jobs=2)(calls)) == 6
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1", "2", "4", "5"]
    assert {file.read_text() for file in tmp_path.iterdir()} <= {"0\n", "1\n"}


def test_a_launchers_own_error_is_raised_and_the_rest_is_run(tmp_path):
    with pytest.raises(ValueError, match="not a number"):
        launchers.Pool(n_jobs=2)([(int, ("not a number",), {}), slot(tmp_path / "1")])
    assert (tmp_path / "1").exists()


class Job:
    def __init__(self, ends):
        self.ends, self.cancelled = ends, False

    def wait(self):
        if not self.ends:
            raise KeyboardInterrupt

    def cancel(self, check):
        self.cancelled = True


def test_submitted_jobs_are_waited_for_or_cancelled():
    jobs = [Job(True), Job(True)]
    assert [each.results()[0].return_value for each in launchers.Submitted(jobs)] == [None, None]
    assert not jobs[0].cancelled
    jobs = [Job(True), Job(False), Job(True)]
    with pytest.raises(KeyboardInterrupt):
        list(launchers.Submitted(jobs))
    assert all(job.cancelled for job in jobs)


@pytest.fixture
def modules(monkeypatch):
    """Put modules in the place of an engine's, by name; a dotted name's parents are made, too."""

    def put(**contents):
        for name, content in contents.items():
            module = types.ModuleType(name.replace("__", "."))
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, module.__name__, module)
            parent, _, child = module.__name__.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)

    return put


def target(name):
    return OmegaConf.load(configs.config_dir() / "hydra" / "launcher" / f"{name}.yaml")._target_


def test_joblibs_launcher_is_given_the_pool(monkeypatch):
    from hydra_plugins.hydra_joblib_launcher import _core

    monkeypatch.setattr(_core, "Parallel", None)
    launchers.go_on(target("joblib"))
    assert _core.Parallel is launchers.Pool


def test_rays_launcher_waits_for_tasks_whose_workers_died(modules, monkeypatch):
    class Died(Exception):
        pass

    def get(job):
        if job == "died":
            raise Died
        if job == "stopped":
            raise KeyboardInterrupt

    import hydra_plugins

    monkeypatch.setattr(hydra_plugins, "hydra_ray_launcher", None, raising=False)
    modules(ray={"get": get, "exceptions": types.SimpleNamespace(RayError=Died)})
    modules(hydra_plugins__hydra_ray_launcher={}, hydra_plugins__hydra_ray_launcher___core={"ray": "theirs"})
    launchers.go_on(target("ray"))
    ray = sys.modules["hydra_plugins.hydra_ray_launcher._core"].ray
    assert [ray.get(job) for job in ("well", "died")] == [launchers.OVER] * 2
    with pytest.raises(KeyboardInterrupt):
        ray.get("stopped")


@pytest.mark.parametrize("name", ["submitit_slurm", "submitit_local"])
def test_submitits_launcher_waits_for_all_and_asks_squeue(name, modules, monkeypatch):
    class Watcher:
        def __init__(self, delay_s):
            self._registered, self._info_dict, self._last_status_check = {"7_0", "7_1"}, {}, 0.0

    slurm_job = type("SlurmJob", (), {})
    executor = type("Executor", (), {"map_array": lambda self, *given: [Job(True), Job(True)]})
    auto = type("AutoExecutor", (executor,), {})
    modules(submitit={"Executor": executor, "AutoExecutor": auto}, submitit__slurm={})
    modules(submitit__slurm__slurm={"SlurmInfoWatcher": Watcher, "SlurmJob": slurm_job})
    launchers.go_on(target(name))
    jobs = auto().map_array("call", [1, 2])
    assert isinstance(jobs, launchers.Submitted)
    assert len(list(jobs)) == 2
    asked = []

    def squeue(command, **_):
        asked.append(command[0])
        return types.SimpleNamespace(returncode=len(asked) - 1, stdout="7_1\n")

    monkeypatch.setattr(launchers.subprocess, "run", squeue)
    watcher = slurm_job.watcher
    watcher.update()
    assert watcher._info_dict == {"7_0": {"State": "OVER"}, "7_1": {"State": "RUNNING"}}
    assert watcher._last_status_check > 0
    watcher._registered = {"7_2"}
    watcher.update()  # squeue failed: nothing new is known
    assert "7_2" not in watcher._info_dict
    assert asked == ["squeue", "squeue"]


def test_an_engine_that_is_not_installed_changes_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "hydra_plugins.hydra_ray_launcher", None)
    monkeypatch.setitem(sys.modules, "submitit", None)
    for name in ("ray", "submitit_slurm"):
        launchers.go_on(target(name))


@pytest.fixture
def swept(tmp_path):
    """What turns words of a command line into the config of their sweep, in this folder."""
    nodes = {"launcher": {"_target_": "BasicLauncher"}, "sweeper": {"_target_": grid.SWEEPER}}

    def config(*words):
        node = {"sweep": {"dir": str(tmp_path)}, "overrides": {"task": list(words)}, **nodes}
        return OmegaConf.create({"outputs": str(tmp_path), "hydra": node})

    with hydra.initialize_config_dir(str(configs.config_dir()), version_base="1.3"):
        yield config
    sweep_folder.end()


def test_a_job_that_left_no_word_is_a_failure(swept, tmp_path, capfd):
    config = swept("defense.epsilon=0.1,0.2", "seed=7")
    end = sweep.Sweep()
    end.on_multirun_start(config)
    assert json.loads((tmp_path / "1.json").read_text())["overrides"] == ["defense.epsilon=0.2", "seed=7"]
    sweep_folder.note(
        tmp_path, 0, {"overrides": ["defense.epsilon=0.1", "seed=7"], "record": "runs/a/b/c/d/record.json"}
    )
    with pytest.raises(SystemExit) as exit_:
        end.on_multirun_end(config)
    assert exit_.value.code == 1
    assert "failed: defense.epsilon=0.2  ended without a word" in capfd.readouterr().err


def test_the_second_job_leaves_the_reference_for_later(tmp_path):
    first, second, reference = toys.cell(0.5), toys.cell(0.7), toys.cell(0)
    assert task.in_turn(first, tmp_path) == [first.reference, first]
    assert task.in_turn(second, tmp_path) == [second, first.reference]
    assert task.in_turn(second, None) == [first.reference, second]
    assert task.in_turn(reference, tmp_path) == [reference]


def test_locks_that_do_not_hold_between_hosts_are_said(swept, tmp_path, monkeypatch, capfd):
    config = swept("seed=1,2")
    assert sweep_folder.doubt(tmp_path) is None
    end = sweep.Sweep()
    end.on_multirun_start(config)
    pickle.dumps(end)  # callbacks travel into the jobs
    assert sweep_folder.doubt(tmp_path) is None
    monkeypatch.setattr("socket.gethostname", lambda: "other")
    assert sweep_folder.doubt(tmp_path) is None
    sweep_folder.OPEN.pop()[1].close()  # on a file system whose locks stay on one host, it looks like this from another
    doubt = sweep_folder.doubt(tmp_path)
    assert "do not hold on other" in doubt
    for number in range(2):
        sweep_folder.note(tmp_path, number, {"overrides": [], "doubt": doubt, "record": "runs/a/b/c/d/record.json"})
    end.on_multirun_end(config)
    assert capfd.readouterr().err.splitlines() == [doubt]


def test_gpus_are_shared_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(launchers, "DRIVERS", ("/",))
    assert launchers.jobs("auto") == 3
    assert launchers.jobs("cuda:1") == 1
    chosen = []
    for slot in range(4):
        monkeypatch.setenv(launchers.SLOT, str(slot))
        chosen.append(str(choose("auto")))
    assert chosen == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]


def test_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 5)
    assert launchers.jobs("cpu") == 5


@pytest.mark.parametrize("count", [0, 1.5, "two", None])
def test_threads_are_a_whole_number(count):
    with pytest.raises(MadError, match="threads"):
        use_threads(count)


def test_one_thread_is_the_default():
    assert toys.compose().threads == 1


def test_no_bar_is_drawn_where_others_print(monkeypatch, capfd):
    monkeypatch.setattr("mad.progress.plain", True)
    monkeypatch.setattr(type(task.err), "is_terminal", True)
    with bar("victim", 10) as advance:
        advance(10, "epoch 1/1", None)
    assert "victim" not in capfd.readouterr().err


@pytest.mark.parametrize(("name", "extra"), [("submitit_slurm", "mad[slurm]"), ("ray", "mad[ray]"), ("joblib", "mad")])
def test_an_engine_that_is_not_there_is_one_line(name, extra):
    line = task.one_line(RuntimeError(f"Unknown plugin class : '{target(name)}'"))
    assert line == f"this launcher is not installed: pip install '{extra}'"


def test_jobs_stand_where_the_sweep_was_launched(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("mad.progress.plain", False)
    monkeypatch.chdir("/")
    launcher = {"_target_": "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"}
    task.settle(OmegaConf.create({"runtime": {"cwd": str(tmp_path)}, "launcher": launcher}))
    assert os.getcwd() == str(tmp_path)
    assert str(tmp_path) in sys.path
    assert progress.plain


def test_a_worker_that_grew_and_was_replaced_is_no_news(recwarn):
    """Loky says so in the parent; the text is taken from its source."""
    from joblib.externals.loky import process_executor

    source = inspect.getsource(process_executor)
    (text,) = re.findall(r'"(A worker stopped while some jobs [^"]*)"', source)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        launchers.Pool(n_jobs=1)
        warnings.warn(text, UserWarning, stacklevel=1)
        warnings.warn("another", UserWarning, stacklevel=1)
    assert [str(each.message) for each in recwarn] == ["another"]
