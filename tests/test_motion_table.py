"""`python -m vdbjax.motion_table`: what its table says, in which order it works, and that no stop loses anything."""

import dataclasses
import importlib
import json
import os
import signal
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probe_environments import MOTION
from test_mocap_command import made_clip

from vdbjax import motion_table, recipes, stages, train
from vdbjax.motion_report import PAPER, PAPER_CLIPS
from vdbjax.motion_table import ABLATED, ABLATION, METHODS, TABLE, Options, Table
from vdbjax.networks import Critic
from vdbjax.training.metrics import MetricsLog
from vdbjax.training.run_dir import RunDir, read_metrics

STEPS = 1000
OPTIONS = f"--seeds 1 --total-steps {STEPS} --episodes 2 --workdir runs --out out"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with two clips named as the paper's."""
    monkeypatch.chdir(tmp_path)
    for name in ("run", "backflip"):
        made_clip(tmp_path).rename(f"humanoid3d_{name}.txt")
    return tmp_path


def clip(name: str) -> str:
    return f"humanoid3d_{name}.txt"


def type_(monkeypatch, typed: str) -> int | str | None:
    """The exit code of `python -m vdbjax.motion_table TYPED`."""
    monkeypatch.setattr(sys, "argv", ["vdbjax.motion_table", *typed.split()])
    try:
        motion_table.main()
    except SystemExit as stop:
        return stop.code
    return 0


def start_run(folder: Path, *, total_steps: int = STEPS, **metrics: float) -> None:
    """A run folder of two iterations, the second evaluated; not finished."""
    folder.mkdir(parents=True)
    config = {"recipe": "motion-vail", "algorithm": {}, "environment": {"env": "mocap/run"}, "total_steps": total_steps}
    (folder / "config.json").write_text(json.dumps({"config": config}))
    (folder / "versions.json").write_text(json.dumps({"device": "a device", "processor": "one", "commit": "c0ffee"}))
    lines = [{"iteration": i, "env_steps": 500 * i, "seconds": 30.0 * i, **metrics} for i in (1, 2)]
    lines[1]["eval/rotation_rad"] = 0.5
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def score_run(folder: Path, **episodes: list[float]) -> None:
    """What the evaluate command leaves."""
    scores = {"rotation_rad": [0.1, 0.3], "fallen": [0.0, 1.0], **episodes}
    content = {"episodes": 2, "seed": 0, "policies": [{"label": "x", "recipe": "x", "iteration": 2, **scores}]}
    (folder / "score.json").write_text(json.dumps(content))


class Commands:
    """In place of the commands: leaves what they would leave, and can be stopped or fail at the n-th."""

    def __init__(self, monkeypatch) -> None:
        self.typed: list[str] = []
        self.at: dict[int, int] = {}  # call -> exit code
        monkeypatch.setattr(stages, "call", self)
        monkeypatch.setattr(motion_table, "call", self)

    def __call__(self, module: str, *arguments: object) -> int:
        words = [module, *map(str, arguments)]
        self.typed.append(" ".join(words))
        code = self.at.get(len(self.typed), 0)
        if module == "train":
            folder = Path(words[words.index("--resume" if "--resume" in words else "--out") + 1])
            if "--resume" not in words:
                start_run(folder, **{"discriminator/policy_accuracy": 0.7})
            if not code:
                (folder / "curves.png").touch()
        elif not code:
            getattr(self, f"_{module}")(words)
        if code == 130:
            sys.exit(code)
        return code

    def _evaluate(self, words: list[str]) -> None:
        score_run(Path(words[1]))

    def _demos(self, words: list[str]) -> None:
        from test_demos import _file

        from vdbjax.data.demonstrations import save

        save(words[-1], _file())

    def _mocap(self, words: list[str]) -> None:
        Path(words[-1]).touch()

    def _render(self, words: list[str]) -> None:
        Path(words[-1]).touch()

    def briefly(self) -> list[str]:
        """Command, recipe or run, and whether it resumed."""
        return [" ".join([*line.split()[:2], *(["--resume"] if "--resume" in line else [])]) for line in self.typed]


@pytest.fixture
def commands(monkeypatch) -> Commands:
    return Commands(monkeypatch)


# The table


def test_the_paper_is_quoted_as_printed():
    assert set(PAPER) == set(TABLE)
    assert PAPER["motion-vail"]["backflip"] == "0.36 ± 0.13"
    assert PAPER["motion-vail-gp"] == dict(
        zip(PAPER_CLIPS, ("0.46 ± 0.17", "0.31 ± 0.02", "0.15 ± 0.01", "0.10 ± 0.01", "0.31 ± 0.02"), strict=True)
    )
    assert PAPER["motion-merel"]["dance_a"] == "2.61 ± 0.30"
    assert PAPER["motion-tracking"]["spinkick"] == "0.19"


def test_numbers_by_hand(here, commands, monkeypatch, capsys):
    """Episode means 0.2 and 0.6 over the seeds: 0.4 with deviation sqrt(2 * 0.2^2 / 1) = 0.2828."""
    for seed, episodes in enumerate(([0.1, 0.3], [0.4, 0.8])):
        folder = here / "runs" / "run" / f"motion-vail-{seed}"
        start_run(folder, **{"bottleneck/kl_nats": 0.5, "bottleneck/beta": 0.1})
        (folder / "curves.png").touch()
        score_run(folder, rotation_rad=episodes, fallen=[0.0, 1.0 - seed], dtw_rotation_rad=[0.2, 0.4])
    chosen = f"--clips {clip('run')} --methods motion-vail motion-gail"
    commands.at = {1: 1, 3: 1}  # whatever is missing fails: GAIL's two seeds
    typed = f"{chosen} {OPTIONS.replace('--seeds 1', '--seeds 2')}"
    assert str(type_(monkeypatch, typed)).startswith("error: 2 of 4 runs failed")
    found = json.loads((here / "out" / "motion_table.json").read_text())
    assert {"date", "commit", "device", "versions", "episodes"} <= found.keys()
    vail, gail = found["rows"]
    assert (vail["clip"], vail["method"], vail["paper"]) == ("run", "motion-vail", "0.13 ± 0.01")
    error = vail["scores"]["rotation_rad"]
    assert error["seeds"] == pytest.approx([0.2, 0.6])
    assert (error["mean"], error["std"]) == (pytest.approx(0.4), pytest.approx(0.28284271))
    assert vail["scores"]["fallen_fraction"]["mean"] == pytest.approx(0.25)
    assert vail["scores"]["dtw_rotation_rad"]["mean"] == pytest.approx(0.3)
    assert [run["seed"] for run in vail["runs"]] == [0, 1]
    assert vail["runs"][0]["training_seconds"] == 60.0
    assert vail["runs"][0]["env_steps"] == 1000
    assert (vail["runs"][0]["commit"], vail["runs"][0]["device"]) == ("c0ffee", "a device")
    assert (gail["scores"], gail["runs"], gail["paper"]) == ({}, [], "0.17 ± 0.03")
    table = (here / "out" / "motion_table.md").read_text()
    assert "| motion-vail | 0.40 ± 0.28 (0.13 ± 0.01) |" in table
    assert "| motion-gail | – (0.17 ± 0.03) |" in table
    assert "| motion-vail | 25% |" in table
    for name in ("error", "discriminator"):
        assert (here / "out" / f"motion_table_run_{name}.png").read_bytes().startswith(b"\x89PNG")


def test_one_seed_has_no_deviation(here, commands, monkeypatch):
    assert type_(monkeypatch, f"--clips {clip('backflip')} --methods motion-gail {OPTIONS}") == 0
    assert "| motion-gail | 0.20 (0.74 ± 0.15) |" in (here / "out" / "motion_table.md").read_text()


# The order of work


def test_the_first_seed_of_everything_comes_first_and_cloning_after_its_oracle(here):
    options = Options(clips=(clip("run"), clip("backflip")), methods=("motion-bc", "motion-vail"), seeds=2)
    order = [f"{stage.name} {stage.method} {stage.seed}" for stage in Table(options).stages]
    assert order == [
        *("run motion-tracking 0", "run motion-bc 0", "run motion-vail 0"),
        *("backflip motion-tracking 0", "backflip motion-bc 0", "backflip motion-vail 0"),
        *("run motion-bc 1", "run motion-vail 1", "backflip motion-bc 1", "backflip motion-vail 1"),
    ]


def test_a_stopped_table_goes_on_where_it_was(here, commands, monkeypatch, capsys):
    typed = f"--clips {clip('run')} --methods motion-gail motion-bc {OPTIONS}"
    gail, tracking, bc = (f"runs/run/motion-{name}-0" for name in ("gail", "tracking", "bc"))
    commands.at = {3: 130}  # while the oracle trains
    assert type_(monkeypatch, typed) == 130
    assert commands.briefly() == ["train motion-gail", f"evaluate {gail}", "train motion-tracking"]
    assert "| motion-gail | 0.20 (0.17 ± 0.03) |" in (here / "out" / "motion_table.md").read_text()
    assert "[2/3] motion-tracking on run, seed 0: begins; 2 left, for about 0:02:00" in capsys.readouterr().out
    commands.typed, commands.at = [], {}
    assert type_(monkeypatch, typed) == 0
    assert commands.briefly() == [
        "train motion-tracking --resume",
        f"evaluate {tracking}",
        "demos collect",
        "train motion-bc",
        f"evaluate {bc}",
    ]
    assert f"collect {tracking} --transitions 10000" in commands.typed[2]
    assert "--demonstrations runs/run/oracle.npz --trajectories 3" in commands.typed[3]
    assert "--total-steps" not in commands.typed[3]
    said = capsys.readouterr().out
    assert "3 runs, 1 of them finished" in said
    assert "[3/3] motion-bc on run, seed 0: error 0.20 (2.63) rad, fallen 50%, trained for 0:01:00" in said
    commands.typed = []
    assert type_(monkeypatch, typed) == 0
    assert commands.typed == []


def test_one_that_fails_does_not_stop_the_others(here, commands, monkeypatch, capsys):
    typed = f"--clips {clip('run')} --methods motion-vail motion-gail {OPTIONS}"
    commands.at = {1: 1}
    assert type_(monkeypatch, typed) == (
        "error: 1 of 2 runs failed, and the same command tries them again: motion-vail on run, seed 0"
    )
    assert commands.briefly() == ["train motion-vail", "train motion-gail", "evaluate runs/run/motion-gail-0"]
    assert "motion-vail on run, seed 0: failed with exit code 1" in capsys.readouterr().out


def test_nothing_is_cloned_from_a_policy_that_has_not_come_to_its_end(here, commands, monkeypatch, capsys):
    typed = f"--clips {clip('run')} --methods motion-bc {OPTIONS}"
    commands.at = {1: 137}  # the oracle's training is killed
    assert "2 of 2 runs failed" in str(type_(monkeypatch, typed))
    assert commands.briefly() == ["train motion-tracking"]
    assert (
        "motion-tracking-0, which motion-bc on run, seed 0 clones, has not come to its end" in capsys.readouterr().err
    )
    assert type_(monkeypatch, typed) == 0
    assert (here / "runs" / "run" / "oracle.npz").exists()


def test_references_are_drawn_before_anything_is_trained(here, commands, monkeypatch):
    typed = f"--clips {clip('run')} --methods motion-gail {OPTIONS} --render"
    commands.at = {1: 1}  # nothing can draw
    assert type_(monkeypatch, typed) == 1
    assert commands.briefly() == ["mocap render"]
    assert type_(monkeypatch, typed) == 0
    assert commands.briefly()[1:] == ["mocap render", "train motion-gail", "evaluate runs/run/motion-gail-0",
                                      "render runs/run/motion-gail-0"]  # fmt: skip
    assert type_(monkeypatch, typed) == 0
    assert len(commands.typed) == 5


def test_more_episodes_score_again_and_train_no_more(here, commands, monkeypatch):
    typed = f"--clips {clip('run')} --methods motion-vail {OPTIONS}"
    assert type_(monkeypatch, typed) == 0
    commands.typed = []
    commands.at = {1: 1}
    assert "1 of 1 runs failed" in str(type_(monkeypatch, typed.replace("--episodes 2", "--episodes 3")))
    assert commands.briefly() == ["evaluate runs/run/motion-vail-0"]


# The ablation


def test_the_ablation_has_its_own_files(here, commands, monkeypatch):
    assert type_(monkeypatch, f"--clips {clip('run')} --ablation {OPTIONS}") == 0
    assert "| motion-vail-gp-no-phase | 0.20 |" in (here / "out" / "motion_ablation.md").read_text()
    assert [line.split()[1] for line in commands.typed if line.startswith("train")] == ["motion-vail-gp"] * 4


def num_parameters(method: str) -> int:
    """Of its discriminator, which is asked about the humanoid."""
    config = train._parse(METHODS[method][0], list(METHODS[method][1:])).run.algorithm
    observations, phase = 225, 2
    now = observations - phase * (config.discriminator.phase != "input")
    inputs = now * (2 if config.discriminator.inputs == "transition" else 1)
    blend = jnp.zeros(config.discriminator.phase_sets) if config.discriminator.phase == "functioned" else None
    critic = Critic(config.discriminator.hidden_sizes, config.bottleneck.latent_size, config.discriminator.activation)
    shapes = jax.eval_shape(lambda key: critic.init(key, jnp.zeros(inputs), blend), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("method", list(ABLATION)[1:])
def test_discriminators_of_the_ablation_are_of_one_size(method):
    assert num_parameters(method) == pytest.approx(num_parameters(ABLATED), rel=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_one_of_the_train_command(method):
    assert train._parse(METHODS[method][0], list(METHODS[method][1:])).run.environment.env.startswith("mocap/")


# Bad input


BAD = {
    "unknown method": ("--methods motion-vial", "unknown method 'motion-vial'; did you mean motion-vail"),
    "another recipe": ("--methods vail", "unknown method 'vail'; known are motion-vail-gp, motion-vail"),
    "unknown clip": ("--clips spinkik", "clip spinkik: no such file"),
    "one good, one unknown clip": (f"--clips {clip('run')} nowhere", "clip nowhere: no such file"),
    "damaged clip": ("--clips damaged.txt", "damaged.txt: not a clip"),
    "two of one name": (f"--clips {clip('run')} other/{clip('run')}", "two are of the same name"),
    "no clips": ("--clips", "--clips"),
    "more than can be told apart": (
        f"--methods {' '.join(METHODS)}",
        "--methods names 12, of which the curves can tell",
    ),
    "no seeds": ("--seeds 0", "--seeds (0) must be at least 1"),
    "no steps": ("--total-steps 0", "--total-steps (0) must be at least 1"),
    "one episode": ("--episodes 1", "--episodes (1) must be at least 2"),
    "unknown option": ("--clip run", "unknown option --clip; did you mean --clips"),
    "a file to work in": ("--workdir damaged.txt", "damaged.txt is a file; name a folder"),
    "a file's folder to write to": ("--out damaged.txt/out", "damaged.txt is a file; name a folder"),
    "a run to work in": ("--workdir runs/backflip/motion-gail-0", "motion-gail-0 is the folder of a run; name another"),
    "a run of other steps": (f"--clips {clip('backflip')} {OPTIONS}", "is a run of 7 steps, not of 1000"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, here, commands, monkeypatch, capsys):
    (here / "damaged.txt").write_text("{")
    (here / "other").mkdir()
    made_clip(here / "other").rename(here / "other" / clip("run"))
    start_run(here / "runs" / "backflip" / "motion-gail-0", total_steps=7)
    typed, message = BAD[case]
    assert type_(monkeypatch, typed) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert (out, commands.typed) == ("", [])


# Commands as processes


@pytest.fixture
def stub(tmp_path, monkeypatch) -> Path:
    """In place of Python: says that it runs, and leaves `saved` half a second after it is stopped or told to end."""
    path = tmp_path / "stub"
    path.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, signal, sys, time\n"
        "def stop(number, frame):\n"
        "    time.sleep(0.5)\n"
        "    pathlib.Path('saved').touch()\n"
        "    sys.exit(0 if sys.argv[-1] == 'ends' else 128 + number)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "if sys.argv[-1].isdigit(): sys.exit(int(sys.argv[-1]))\n"
        "pathlib.Path('running').touch()\n"
        "time.sleep(2.0 if sys.argv[-1] == 'ends' else 60)\n"
        "pathlib.Path('saved').touch()\n"
    )
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def once_running(folder: Path, number: int) -> threading.Thread:
    def wait() -> None:
        while not (folder / "running").exists():
            threading.Event().wait(0.05)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("code", [0, 1, 2])
def test_exit_codes_come_back(stub, code):
    assert stages.call("train", code) == code


@pytest.mark.parametrize(
    ("number", "last"), [(signal.SIGTERM, "goes on"), (signal.SIGTERM, "ends"), (signal.SIGINT, "ends")]
)
def test_a_stop_waits_until_the_command_has_saved(stub, number, last):
    """A terminal sends SIGINT to both; here only this process gets it, and waits all the same."""
    thread = once_running(stub, number)
    with pytest.raises(SystemExit) as stop:
        stages.call("train", last)
    thread.join()
    assert stop.value.code == 128 + number
    assert (stub / "saved").exists()


# All of it, small


@pytest.fixture
def small(monkeypatch) -> None:
    """A probe in place of the humanoid, networks of eight units, and commands in this process."""
    monkeypatch.setattr("vdbjax.build.make_environment", lambda config: MOTION)
    config = recipes.RECIPES["motion-tracking"].config
    ppo = dataclasses.replace(
        config.algorithm.ppo, rollout_length=8, minibatch_size=16, num_epochs=1, hidden_sizes=(8,)
    )
    algorithm = dataclasses.replace(config.algorithm, ppo=ppo)
    config = dataclasses.replace(config, algorithm=algorithm, num_envs=4, evaluations=1, eval_episodes=2)
    monkeypatch.setitem(recipes.RECIPES, "motion-tracking", recipes.Recipe("", config))
    for name in ("use_all_devices", "start_processes"):
        monkeypatch.setattr(train, name, lambda: None)

    def call(module: str, *arguments: object) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [module, *map(str, arguments)])
            try:
                importlib.import_module(f"vdbjax.{module}").main()
            except SystemExit as stop:
                if stop.code == 130:
                    raise
                return 1
        return 0

    monkeypatch.setattr(stages, "call", call)
    monkeypatch.setattr(motion_table, "call", call)


@pytest.mark.long
def test_trained_interrupted_resumed_and_scored(here, small, monkeypatch, capsys):
    write = MetricsLog.write

    def write_and_interrupt(self, line):
        write(self, line)
        if line["iteration"] == 2 and not (here / "interrupted").exists():
            (here / "interrupted").touch()
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(MetricsLog, "write", write_and_interrupt)
    typed = f"--clips {clip('run')} --methods motion-tracking --seeds 1 --total-steps 96 --episodes 2"
    typed += " --workdir runs --out out"
    assert type_(monkeypatch, typed) == 130
    folder = here / "runs" / "run" / "motion-tracking-0"
    first = read_metrics(RunDir(folder))
    assert [line["iteration"] for line in first] == [1, 2]
    assert not (here / "out").exists()
    assert type_(monkeypatch, typed) == 0
    lines = read_metrics(RunDir(folder))
    assert [line["iteration"] for line in lines] == [1, 2, 3]
    assert lines[:2] == first
    (row,) = json.loads((here / "out" / "motion_table.json").read_text())["rows"]
    (policy,) = json.loads((folder / "score.json").read_text())["policies"]
    assert row["scores"]["rotation_rad"]["seeds"] == [np.mean(policy["rotation_rad"])]
    assert 0 < row["scores"]["rotation_rad"]["mean"] < np.pi
    assert row["runs"][0]["env_steps"] == 96
    assert (here / "out" / "motion_table_run_error.png").exists()
    assert not (here / "out" / "motion_table_run_discriminator.png").exists()
