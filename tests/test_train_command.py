"""`python -m vdbjax.train` and bad input: one line on stderr, exit code 2, and nothing overwritten or left behind.

No test here gets as far as compiling an update.
"""

import dataclasses
import pickle
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from vdbjax import train, trained
from vdbjax.build import build
from vdbjax.compiler import compiler_options
from vdbjax.data.demonstrations import DemonstrationFile, from_episodes, save
from vdbjax.envs.env import EnvironmentConfig
from vdbjax.image_recipes import IMAGE_RECIPES
from vdbjax.recipes import RECIPES, find_recipe
from vdbjax.rl.normalize import empty_moments
from vdbjax.rl.policy import Actor
from vdbjax.run_config import DemonstrationConfig, by_own_files
from vdbjax.saved_config import refuse_changes
from vdbjax.trained import read_config
from vdbjax.training.run_dir import create_run


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder to work in. One device, as the mesh that the command sets would outlive it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "use_all_devices", lambda: None)
    monkeypatch.setattr(train, "start_processes", lambda: None)
    return tmp_path


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_recipe_every_one_stands_under_what_it_learns(arguments, here, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    train.main()
    paragraphs = capsys.readouterr().out.strip().split("\n\n")[1:-1]
    menus = {heading: [row.split()[0] for row in rows] for heading, *rows in map(str.splitlines, paragraphs)}
    assert [name for names in menus.values() for name in names] == [*RECIPES, *IMAGE_RECIPES]
    assert menus["rewards that transfer (--env maze/c, maze/s):"] == [
        name for name, recipe in RECIPES.items() if recipe.config.environment.env == "maze/c"
    ]


def write_demonstrations(
    path: str = "demos.npz", *, task: str = "hopper", sizes: tuple[int, int] = (11, 3), random_return: float = 0.0
) -> None:
    draw = np.random.default_rng(0)
    lengths = (30, 20)
    observations = [draw.normal(size=(n + 1, sizes[0])) for n in lengths]
    actions = [draw.uniform(-1, 1, size=(n, sizes[1])) for n in lengths]
    made = from_episodes(observations, actions, [np.ones(n) for n in lengths], [False, True])
    save(path, DemonstrationFile(made, task, random_return, "noise"))


def change_members(**members: np.ndarray) -> None:
    write_demonstrations("good.npz")
    with np.load("good.npz") as archive:
        content = dict(archive)
    np.savez("demos.npz", **(content | members), allow_pickle=True)


def write_run(path: str = "old", *, recipe: str = "ppo", **changes: object) -> None:
    """A run folder, as it is before its first checkpoint."""
    config = RECIPES[recipe].config
    environment = dataclasses.replace(config.environment, engine="c")
    content = dataclasses.asdict(dataclasses.replace(config, environment=environment, **changes))
    create_run(path, {"config": content, "engine": "c", "facts": {}})


def type_(monkeypatch, capsys, typed: str) -> tuple[int | str | None, str]:
    """(exit code, stderr) of `python -m vdbjax.train TYPED`."""
    monkeypatch.setattr(sys, "argv", ["vdbjax.train", *typed.split()])
    with pytest.raises(SystemExit) as stop:
        train.main()
    return stop.value.code, capsys.readouterr().err


def content_of(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def nothing() -> None:
    pass


NAN = np.full((52, 11), np.nan, np.float32)

BAD = {
    "unknown recipe": (nothing, "vial", "unknown recipe 'vial'; did you mean vail"),
    "nothing like a recipe": (nothing, "xyzzy", "unknown recipe 'xyzzy'; known are ppo, trpo, bc"),
    "no run to go on with": (nothing, "--resume", "--resume needs the folder of a run"),
    "no recipe": (nothing, "--num-envs 4", "name a recipe before --num-envs; `python -m vdbjax.train` lists them"),
    "unknown task": (nothing, "ppo --env hoper", "unknown task 'hoper'; did you mean hopper?"),
    "unknown flag": (nothing, "ppo --num-env 4", "unknown option --num-env; did you mean --num-envs or "),
    "another recipe's flag": (nothing, "ppo --trajectories 4", "unknown option --trajectories; "),
    "no number": (nothing, "ppo --num-envs many", "--num-envs: invalid literal for int() with base 10: 'many'"),
    "missing value": (nothing, "ppo --resume", "Missing value for argument '--resume'"),
    "a value too many": (nothing, "ppo 7", "unknown argument 7"),
    "negative environments": (nothing, "ppo --num-envs -4", "num_envs (-4) must be at least 1"),
    "no seeds": (nothing, "ppo --num-seeds 0", "num_seeds (0) must be at least 1"),
    "negative seed": (nothing, "ppo --seed -1", "seed (-1) must lie between 0 and 4294967295"),
    "negative steps": (nothing, "ppo --total-steps -5", "total_steps (-5) must be at least 1"),
    "no evaluations": (nothing, "ppo --evaluations 0", "evaluations (0) must be at least 1"),
    "checkpoints never": (nothing, "ppo --checkpoint-seconds nan", "checkpoint_seconds (nan) must be finite and not"),
    "negative episodes": (nothing, "ppo --eval-episodes -1", "eval_episodes (-1) must be at least 1"),
    "negative rate": (nothing, "ppo --ppo.learning-rate -1", "learning_rate (-1.0) must be above 0 and finite"),
    "rate that is no number": (
        nothing,
        "ppo --ppo.learning-rate nan",
        "learning_rate (nan) must be above 0 and finite",
    ),
    "a layer of nothing": (nothing, "ppo --ppo.hidden-sizes 64 0", "hidden_sizes (64, 0) must be at least 1 each"),
    "a critic of nothing": (
        nothing,
        "gail --discriminator.hidden-sizes 0",
        "hidden_sizes (0,) must be at least 1 each",
    ),
    "noise on a code that has its own": (
        write_demonstrations,
        "vail --demonstrations demos.npz --trajectories 2 --discriminator.code-noise 0.5",
        "code_noise (0.5) is for discriminators without a bottleneck",
    ),
    "discount": (nothing, "ppo --ppo.discount 1.5", "discount (1.5) must lie between 0 and 1"),
    "negative epochs": (nothing, "ppo --ppo.num-epochs -1", "num_epochs (-1) must be at least 1"),
    "batch size": (
        nothing,
        "ppo --num-envs 8 --ppo.rollout-length 10 --ppo.minibatch-size 32",
        "num_envs x rollout_length (8 x 10 = 80) must be divisible by minibatch_size (32)",
    ),
    "existing folder": (
        lambda: Path("old").mkdir(),
        "ppo --out old",
        "run folder old exists; choose another --out, or go on with --resume old",
    ),
    "existing run": (write_run, "ppo --out old", "run folder old exists; choose another --out"),
    "existing file": (lambda: Path("old").write_text("precious"), "ppo --out old", "run folder old exists"),
    "no demonstrations": (
        nothing,
        "vail --demonstrations demos.npz",
        "demos.npz: cannot be read (No such file or directory)",
    ),
    "sizes of another task": (
        lambda: write_demonstrations(sizes=(17, 6)),
        "vail --demonstrations demos.npz",
        "demos.npz: demonstrations of 'hopper' (17 observations, 6 actions) given to task 'hopper' (11, 3)",
    ),
    "another task": (
        lambda: write_demonstrations(task="walker2d"),
        "bc --demonstrations demos.npz",
        "demos.npz: demonstrations of 'walker2d' (11 observations, 3 actions) given to task 'hopper' (11, 3)",
    ),
    "steps of cloning": (
        nothing,
        "bc --total-steps 1000",
        "total_steps (1000): cloning takes no control steps; max_iterations bounds it",
    ),
    "actions of another scale": (
        lambda: change_members(actions=np.full((50, 3), -3.0, np.float32)),
        "vail --demonstrations demos.npz --engine c",
        "demos.npz has actions that lie outside the range of hopper by 100% of it; rescale them",
    ),
    "a film with relative targets": (
        nothing,
        "video-vail --targets relative",
        "targets 'relative' are for mocap/CLIP; a film gives none to be relative to",
    ),
    "a task without demonstrations": (nothing, "vail --env reacher", "no demonstrations of task 'reacher' come with"),
    "NaN": (lambda: change_members(observations=NAN), "vail --demonstrations demos.npz", "hold NaN or infinity"),
    "wrong shapes": (
        lambda: change_members(actions=np.zeros((49, 3))),
        "vail --demonstrations demos.npz",
        "demos.npz: actions has 49 rows, but 2 episodes of 50 transitions in all need 50",
    ),
    "no episodes": (
        lambda: change_members(
            observations=np.zeros((0, 11)),
            actions=np.zeros((0, 3)),
            rewards=np.zeros(0),
            terminated=np.zeros(0, bool),
            episode_lengths=np.zeros(0, np.int64),
        ),
        "vail --demonstrations demos.npz",
        "demos.npz: no episodes",
    ),
    "truncated file": (
        lambda: (write_demonstrations(), Path("demos.npz").write_bytes(Path("demos.npz").read_bytes()[:-100])),
        "vail --demonstrations demos.npz",
        "demos.npz: damaged, truncated or with pickled members",
    ),
    "a pickle": (
        lambda: Path("demos.npz").write_bytes(pickle.dumps({"observations": [1.0]})),
        "vail --demonstrations demos.npz",
        "demos.npz: not a demonstration file",
    ),
    "pickled members": (
        lambda: change_members(rewards=np.array([{"a": 1}] * 50, object)),
        "vail --demonstrations demos.npz",
        "demos.npz: damaged, truncated or with pickled members",
    ),
    "more trajectories than there are": (
        write_demonstrations,
        "vail --demonstrations demos.npz --trajectories 3",
        "trajectories (3) is more than the 2 episodes of the demonstrations",
    ),
    "no trajectories": (
        write_demonstrations,
        "vail --demonstrations demos.npz --trajectories 0",
        "trajectories (0) and every (20) must be at least 1",
    ),
    "resume nothing": (nothing, "ppo --resume old", "old is not a run folder: it has no config.json"),
    "resume nothing, no recipe": (nothing, "--resume old", "old is not a run folder: it has no config.json"),
    "resume changed, no recipe": (write_run, "--resume old --num-envs 64", "--num-envs (32 -> 64) cannot change"),
    "resume a folder": (lambda: Path("old").mkdir(), "ppo --resume old", "old is not a run folder"),
    "resume a damaged config": (
        lambda: (write_run(), Path("old/config.json").write_text('{"config": {"recipe": "ppo"}}')),
        "ppo --resume old",
        "this config is of another version of RunConfig: ",
    ),
    "resume no config at all": (
        lambda: (write_run(), Path("old/config.json").write_text("[]")),
        "ppo --resume old",
        "old/config.json is damaged",
    ),
    "resume an unknown recipe": (
        lambda: (write_run(), Path("old/config.json").write_text('{"config": {"recipe": "vial"}}')),
        "--resume old",
        "old: unknown recipe 'vial'; did you mean vail",
    ),
    "resume another recipe": (write_run, "vail --resume old", "old is a run of recipe 'ppo', not of 'vail'"),
    "resume changed": (
        write_run,
        "ppo --resume old --ppo.clip 0.3 --num-envs 64",
        "a resumed run keeps its config: --ppo.clip (0.2 -> 0.3), --num-envs (32 -> 64) cannot change",
    ),
    "resume changed, with an equals sign": (
        lambda: write_run(num_envs=16),
        "ppo --resume=old --num-envs 64",
        "a resumed run keeps its config: --num-envs (16 -> 64) cannot change",
    ),
    "resume into another folder": (write_run, "ppo --resume old --out new", "--out (new) makes a new run"),
    "resume damaged checkpoints": (
        lambda: (write_run(), Path("old/checkpoints/3").mkdir()),
        "ppo --resume old --engine c",
        "old cannot be loaded: all of its 1 checkpoints are damaged; train anew into another folder",
    ),
    "start from nothing": (
        write_demonstrations,
        "vail --demonstrations demos.npz --init-from old",
        "old is not a run folder",
    ),
}


@pytest.mark.parametrize(("prepare", "typed", "message"), BAD.values(), ids=BAD.keys())
def test_one_line(here, monkeypatch, capsys, prepare, typed, message) -> None:
    prepare()
    before = content_of(here)
    code, said = type_(monkeypatch, capsys, typed)
    assert code == 2, said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert message in said
    assert content_of(here) == before


def policy_of(sizes: tuple[int, ...], *, task: str, num_observations: int) -> Actor:
    """What a run of that task would hold."""
    config = RECIPES["ppo"].config
    config = dataclasses.replace(
        config,
        algorithm=dataclasses.replace(
            config.algorithm, ppo=dataclasses.replace(config.algorithm.ppo, hidden_sizes=sizes)
        ),
        environment=dataclasses.replace(config.environment, env=task, engine="c"),
    )
    built = build(config)
    actor = Actor(built.policy.init(jax.random.key(0)), None)
    assert built.environment.observation_size == num_observations
    return actor._replace(observations=empty_moments((num_observations,)))


STARTS = {
    "another task": (
        "vail",
        lambda: policy_of((64, 64), task="walker2d", num_observations=17),
        "policy of 17 observations, hopper has 11; give a run of this task",
    ),
    "other layers": (
        "vail",
        lambda: policy_of((32,), task="hopper", num_observations=11),
        "hidden_sizes",
    ),
}


@pytest.mark.parametrize(("recipe", "make", "message"), STARTS.values(), ids=STARTS.keys())
def test_a_first_policy_that_does_not_fit(here, monkeypatch, capsys, recipe, make, message) -> None:
    write_demonstrations()
    actor = make()
    monkeypatch.setattr(train, "load_actor", lambda path, config: actor)
    typed = f"{recipe} --engine c --demonstrations demos.npz --trajectories 2 --init-from elsewhere --out new"
    code, said = type_(monkeypatch, capsys, typed)
    assert code == 2
    assert said.count("\n") == 1
    assert message in said
    assert not Path("new").exists()


@pytest.mark.parametrize("recipe", ["airl", "bc", "motion-bc"])
def test_recipes_that_start_from_no_policy(recipe) -> None:
    with pytest.raises(ValueError, match=f"init_from is for GAIL's and VAIL's recipes; {recipe} starts from nothing"):
        trained.load_actor("elsewhere", RECIPES[recipe].config)


def test_a_reward_that_counts_absorbing_states_is_not_trained_on(monkeypatch) -> None:
    gail, ppo = RECIPES["gail"].config, RECIPES["ppo"].config
    absorbing = dataclasses.replace(gail.algorithm.discriminator, absorbing=True)
    there = dataclasses.replace(gail, algorithm=dataclasses.replace(gail.algorithm, discriminator=absorbing))
    monkeypatch.setattr(trained, "load_reward", lambda path, environment: [None])
    monkeypatch.setattr(trained, "read_config", lambda path: there)
    here = dataclasses.replace(ppo, algorithm=dataclasses.replace(ppo.algorithm, reward=Path("elsewhere")))
    with pytest.raises(ValueError, match=r"give a run without --discriminator\.absorbing"):
        trained.reward_of(here)


@pytest.mark.parametrize(("option", "theirs"), [("activation", "relu"), ("distribution", "tanh-gaussian")])
def test_a_first_policy_that_would_be_another_here(monkeypatch, option, theirs) -> None:
    config = RECIPES["vail"].config
    other = dataclasses.replace(config.algorithm.ppo, **{option: theirs})
    there = dataclasses.replace(config, algorithm=dataclasses.replace(config.algorithm, ppo=other))
    monkeypatch.setattr(trained, "load_trained", lambda path: trained.Trained(there, None, [], 1))
    with pytest.raises(ValueError, match=f"init_from has a policy with {option} {theirs}, this run's is "):
        trained.load_actor("elsewhere", config)


@pytest.mark.parametrize(("random_return", "scored"), [(0.0, True), (float("nan"), False), (25.0, False)])
def test_there_is_no_score_where_a_random_return_is_unknown_or_the_experts(here, random_return, scored) -> None:
    write_demonstrations(random_return=random_return)  # the expert's are 30 and 20
    shown, hopper = DemonstrationConfig(Path("demos.npz"), trajectories=2), EnvironmentConfig("hopper", engine="c")
    built = build(dataclasses.replace(RECIPES["bc"].config, environment=hopper, demonstration=shown))
    key = jax.random.key(0)
    found = jax.eval_shape(lambda: built.algorithm.evaluate(built.algorithm.init(key), key))
    assert ("eval/score" in found) == ("expert_return" in built.facts) == scored


def test_files_are_named_by_their_whole_paths(here) -> None:
    Path("my.txt").write_text("")
    for kind in ("mocap", "video"):
        config = dataclasses.replace(RECIPES["ppo"].config, environment=EnvironmentConfig(f"{kind}/my.txt"))
        assert train._settled(config).environment.env == f"{kind}/{here}/my.txt"


def test_a_run_goes_by_the_files_it_keeps(here) -> None:
    shown, start, clip, run = here / "demos.npz", here / "cloned", here / "my.txt", here / "run"
    config = dataclasses.replace(
        RECIPES["motion-bc"].config,
        environment=EnvironmentConfig(f"mocap/{clip}"),
        demonstration=DemonstrationConfig(shown, init_from=start),
    )
    assert config.files == {"demonstrations.npz": shown, "init_from": start, "my.txt": clip}
    run.mkdir()
    assert by_own_files(config, run) == config
    for name in config.files:
        (run / name).write_text("")
    own = by_own_files(config, run)
    assert own.environment.env == f"mocap/{run}/my.txt"
    assert own.demonstration == DemonstrationConfig(run / "demonstrations.npz", init_from=run / "init_from")
    assert not RECIPES["motion-vail"].config.files


def test_one_file_has_many_names(here) -> None:
    config = RECIPES["vail"].config
    named = [
        dataclasses.replace(config, demonstration=dataclasses.replace(config.demonstration, demonstrations=path))
        for path in (Path("demos.npz"), here / "demos.npz", Path("others.npz"))
    ]
    refuse_changes(named[0], named[1])
    with pytest.raises(ValueError, match=r"--demonstrations \(.*/demos.npz -> .*/others.npz\)"):
        refuse_changes(named[0], named[2])


TOO_MANY = {
    "a billion": ("--num-envs 1000000000", r"num_envs \(1000000000\) asks for [\d,]{5,}\.\d GiB for rollouts of 1 "),
    "a million seeds": ("--num-seeds 1000000", r"num_envs \(32\) asks for [\d,]+\.\d GiB for rollouts of 1000000 "),
}


@pytest.mark.parametrize(("typed", "message"), TOO_MANY.values(), ids=TOO_MANY.keys())
def test_beyond_memory(here, monkeypatch, capsys, typed, message) -> None:
    """It is refused before anything is allocated: nothing is compiled or run."""
    monkeypatch.setattr(train, "train", lambda *_, **__: pytest.fail("went on to train"))
    code, said = type_(monkeypatch, capsys, f"ppo --engine c {typed} --out new")
    assert code == 2
    assert said.count("\n") == 1
    assert re.search(message + r"seeds, and [\d,.]+ GiB are free; take fewer environments", said)
    assert not Path("new").exists()


def test_seeds_count_as_environments_do(here, monkeypatch, capsys) -> None:
    """A seed has 2,048 steps of 36 numbers, 4 bytes each, thrice."""
    monkeypatch.setattr(train, "available_bytes", lambda: 5 * 3 * 2048 * 36 * 4 - 1)
    code, said = type_(monkeypatch, capsys, "ppo --engine c --num-seeds 5")
    assert code == 2
    assert "num_envs (32) asks for 0.0 GiB for rollouts of 5 seeds" in said
    reached = []
    monkeypatch.setattr(train, "train", lambda *_, **__: reached.append(1) or (None, {}))
    monkeypatch.setattr(train, "curves_of", lambda path: None)
    monkeypatch.setattr(train, "draw_curves", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["vdbjax.train", "ppo", "--engine", "c", "--num-seeds", "4", "--out", "new"])
    train.main()
    assert reached == [1]


class Ended(Exception):
    """In place of training."""


@pytest.fixture
def untrained(here, monkeypatch) -> list:
    """Commands get as far as training and no further; what they would have trained."""
    reached: list = []

    def instead(algorithm, run, schedule, key, *, resume, options):
        assert options == compiler_options()
        reached.append((run, schedule, resume))
        raise Ended

    monkeypatch.setattr(train, "train", instead)
    return reached


def start(typed: str) -> None:
    with pytest.raises(Ended):
        train._run(typed.split())


def test_a_resumed_run_has_the_config_it_was_started_with(untrained, capsys) -> None:
    write_demonstrations()
    start("vail --engine c --demonstrations demos.npz --trajectories 2 --ppo.clip 0.3 --total-steps 8192 --out new")
    config = read_config("new")
    assert config.algorithm.ppo.clip == 0.3
    assert config.demonstration.demonstrations == Path("demos.npz").absolute()
    assert config.environment.engine == "c"
    for typed in ("vail --resume new", "--resume new", "--resume=new"):
        start(typed)
        assert read_config("new") == config
    reached = [(schedule.num_iterations, resume) for _, schedule, resume in untrained]
    assert reached == [(4, False), (4, True), (4, True), (4, True)]
    assert "vail on hopper, engine c, 32 environments, 1 x" not in capsys.readouterr().err


def test_a_run_keeps_the_demonstrations_it_learns_from(untrained) -> None:
    write_demonstrations()
    given = Path("demos.npz").read_bytes()
    start("vail --engine c --demonstrations demos.npz --trajectories 2 --total-steps 8192 --out new")
    assert Path("new/demonstrations.npz").read_bytes() == given
    Path("demos.npz").unlink()
    start("vail --resume new")
    assert read_config("new").demonstration.demonstrations == Path("demos.npz").absolute()  # where they came from


def test_what_a_resumed_run_may_change_holds_the_next_time_too(untrained) -> None:
    start("ppo --engine c --total-steps 8192 --out new")
    start("ppo --resume new --total-steps 16384 --evaluations 3")
    start("ppo --resume new")
    reached = [(schedule.num_iterations, schedule.evaluations) for _, schedule, _ in untrained]
    assert reached == [(4, 10), (8, 3), (8, 3)]


def test_auto_is_written_down_as_what_it_means_here(untrained) -> None:
    start("ppo --out new")
    assert read_config("new").environment.engine == "c"  # JAX computes on the CPU


def test_the_default_folder_is_named_after_the_run(untrained, here) -> None:
    start("ppo --engine c --env reacher")
    (made,) = (here / "runs").iterdir()
    assert made.name.startswith("ppo-reacher-20")


def test_help_lists_the_recipes(capsys) -> None:
    train._run([])
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in RECIPES)


def test_a_full_disk_ends_the_run_with_one_line(here, monkeypatch, capsys) -> None:
    """From the command on down to the log: the checkpoint before is as it was."""

    def full(*_, **__):
        raise OSError("checkpoint old/checkpoints/8 cannot be written (No space left on device)")

    monkeypatch.setattr(train, "train", full)
    monkeypatch.setattr(sys, "argv", ["vdbjax.train", "ppo", "--engine", "c", "--out", "new"])
    with pytest.raises(SystemExit) as stop:
        train.main()
    # A string makes Python print it to stderr and exit with 1.
    assert stop.value.code == "error: checkpoint old/checkpoints/8 cannot be written (No space left on device)"


def test_a_folder_that_may_not_be_written_is_one_line(here, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "new")

    monkeypatch.setattr(train, "create_run", refuse)
    monkeypatch.setattr(sys, "argv", ["vdbjax.train", "ppo", "--engine", "c", "--out", "new"])
    with pytest.raises(SystemExit) as stop:
        train.main()
    assert stop.value.code == "error: [Errno 13] Permission denied: 'new'"


def test_a_recipe_alone_takes_its_defaults() -> None:
    options = train._parse("vail", [])
    assert options.out is None
    assert options.resume is None
    assert options.run == find_recipe("vail")
