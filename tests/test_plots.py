"""Learning curves: the numbers behind the lines, the command `python -m vdbjax.plot`, and how it fails."""

import json
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from vdbjax import plot
from vdbjax.evaluation.panels import PANELS, Series
from vdbjax.evaluation.plots import COLOURS, MOST_POINTS, Curve, RunCurves, align, draw_curves, thinned
from vdbjax.run_curves import curves_of, recipe_labels, run_labels

KL = "bottleneck/kl_nats"


def _lines(count: int = 3, *, steps: int = 100, **metrics) -> list[dict]:
    """Iterations 1, 2, ... of `steps` control steps and 2 s each; each metric is a function of the iteration."""
    return [
        {"iteration": i, "env_steps": steps * i, "seconds": 2.0 * i}
        | {name.replace("__", "/"): of(i) for name, of in metrics.items()}
        for i in range(1, count + 1)
    ]


def _panel(figure: Figure, title: str):
    return next(axes for axes in figure.axes if axes.get_title(loc="left") == title)


def _titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def _heights(axes) -> set[float]:
    """Where lines cross the whole panel."""
    return {float(line.get_ydata()[0]) for line in axes.lines if list(line.get_xdata()) == [0, 1]}


def test_seeds_of_all_runs_meet_where_all_have_come() -> None:
    short = RunCurves("a", [{"iteration": i, "env_steps": 8 * i, "seconds": 10.0 * i, "m/x": 1.0 * i} for i in (1, 2)])
    long = RunCurves(
        "a", [{"iteration": i, "env_steps": 8 * i, "seconds": 20.0 * i, "m/x": [3.0, 5.0 * i]} for i in (1, 2, 3)]
    )
    curve = align([short, long], Series(("m/x",)), "seconds")
    np.testing.assert_array_equal(curve.x, [15.0, 30.0])
    np.testing.assert_array_equal(curve.y, [[1.0, 3.0, 5.0], [2.0, 3.0, 10.0]])


def test_a_metric_on_some_lines_is_drawn_there_only() -> None:
    lines = _lines(4, m__x=float)
    lines[1]["eval/return"] = lines[3]["eval/return"] = 7.0
    curve = align([RunCurves("a", lines)], Series(("eval/return",)), "env_steps")
    np.testing.assert_array_equal(curve.x, [200, 400])


def test_a_long_curve_is_one_of_means() -> None:
    values = np.arange(2.0 * 2 * MOST_POINTS + 6).reshape(-1, 2)  # two seeds
    curve = thinned(Curve(np.arange(1.0, len(values) + 1), values))
    assert curve.x.tolist() == [*range(3, len(values), 3), len(values)]
    np.testing.assert_allclose(curve.y[:2], [values[:3].mean(axis=0), values[3:6].mean(axis=0)])
    np.testing.assert_allclose(curve.y[-1], values[len(values) // 3 * 3 :].mean(axis=0))
    short = Curve(np.arange(5.0), values[:5])
    assert thinned(short) is short


def test_mean_and_band(tmp_path) -> None:
    run = RunCurves("vail", _lines(bottleneck__kl_nats=lambda i: [1.0 * i, 2.0 * i, 6.0 * i]), info_constraint=0.75)
    axes = _panel(draw_curves([run], tmp_path / "a.png"), "Information through the bottleneck")
    (mean,) = [line for line in axes.lines if len(line.get_xdata()) == 3]
    np.testing.assert_array_equal(mean.get_xdata(), [100, 200, 300])
    np.testing.assert_array_equal(mean.get_ydata(), [3.0, 6.0, 9.0])
    corners = {tuple(corner) for corner in axes.collections[0].get_paths()[0].vertices}
    assert {(100, 1), (200, 2), (300, 3), (100, 6), (200, 12), (300, 18)} == corners
    assert _heights(axes) == {0.75}
    assert "nats" in axes.get_ylabel()
    assert axes.get_xlabel() == "control steps"


def test_reward_spread_is_the_root_of_the_variance() -> None:
    (panel,) = [panel for panel in PANELS if any("reward/variance" in series.metrics for series in panel.series)]
    run = RunCurves("a", [{"iteration": 1, "env_steps": 8, "seconds": 1.0, "reward/mean": 5.0, "reward/variance": 9.0}])
    values = [align([run], series, "iteration").y.item() for series in panel.series]
    assert values == [5.0, 8.0, 2.0]


def test_the_figure_is_a_png_and_shows_only_what_was_logged(tmp_path) -> None:
    run = RunCurves("a", _lines(eval__score=lambda i: 0.3 * i, discriminator__expert_accuracy=lambda i: 0.9))
    figure = draw_curves([run], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert _titles(figure) == ["Normalised score", "Discriminator accuracy"]
    assert _heights(_panel(figure, "Normalised score")) == {0.9, 1.0}


def test_one_colour_a_group_and_seeds_are_counted(tmp_path) -> None:
    runs = [RunCurves(label, _lines(value__loss=lambda i: 1.0)) for label in ("gail", "vail", "gail", "cost $a$")]
    figure = draw_curves(runs, tmp_path / "a.png")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["gail (2 seeds)", "vail", r"cost \$a\$"]
    assert [line.get_color() for line in figure.axes[0].lines] == list(COLOURS[:3])
    assert "lowest to highest" in figure.get_supxlabel()


SCALES = {"positive": (lambda i: 0.1**i, "log"), "touches zero": (lambda i: i - 1.0, "linear")}


@pytest.mark.parametrize("case", SCALES)
def test_logarithmic_where_all_is_positive(case: str, tmp_path) -> None:
    value, expected = SCALES[case]
    figure = draw_curves([RunCurves("a", _lines(value__loss=value))], tmp_path / "a.png")
    assert _panel(figure, "Value loss").get_yscale() == expected


def test_labels_of_less_than_a_decade_say_where_they_stand(tmp_path) -> None:
    figure = draw_curves([RunCurves("a", _lines(value__loss=lambda i: 0.12 + 0.005 * i))], tmp_path / "a.png")
    axis = _panel(figure, "Value loss").yaxis
    figure.canvas.draw()
    labels = [label for label in axis.get_minorticklabels() if label.get_text()]
    assert len(labels) > 2
    for label in labels:
        assert float(label.get_text()) == pytest.approx(label.get_position()[1], rel=5e-3)


def test_chosen_metrics_keep_their_panels_and_others_get_plain_ones(tmp_path) -> None:
    run = RunCurves("a", _lines(policy__kl_nats=float, value__loss=float, eval__score=float, reward__mean=float))
    figure = draw_curves([run], tmp_path / "a.png", metrics=["policy/kl_nats", "eval/score"], x="seconds")
    assert _titles(figure) == ["Normalised score", "policy/kl_nats"]
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_xdata(), [2.0, 4.0, 6.0])


def test_without_control_steps_the_axis_counts_iterations(tmp_path) -> None:
    run = RunCurves("bc", _lines(steps=0, policy__loss_nats=float))
    (axes,) = draw_curves([run], tmp_path / "a.png").axes
    assert axes.get_xlabel() == "iteration"
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [1, 2, 3])


def test_beside_control_steps_cloning_is_a_level_line(tmp_path) -> None:
    cloned = RunCurves("bc", _lines(steps=0, eval__return=lambda i: 40.0 + i, policy__loss_nats=float))
    figure = draw_curves([RunCurves("vail", _lines(eval__return=float)), cloned], tmp_path / "a.png")
    assert _titles(figure) == ["True return"]
    assert _heights(figure.axes[0]) == {43.0}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["vail", "bc (last value)"]


def test_a_groups_mark_has_its_colour_and_stands_at_the_right_edge(tmp_path) -> None:
    runs = [RunCurves(label, _lines(eval__rotation_rad=lambda i: 1.0 / i)) for label in ("gail", "vail", "merel")]
    marks = {"vail": 0.25, "merel": 0.5, "not drawn": 9.0}
    (axes,) = draw_curves(runs, tmp_path / "a.png", marks=marks, mark_name="paper's").axes
    bars = [line for line in axes.lines if list(line.get_xdata()) == [0.95, 1.0]]
    found = {(float(bar.get_ydata()[0]), bar.get_color()) for bar in bars}
    assert found == {(0.25, COLOURS[1]), (0.5, COLOURS[2])}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["paper's"]


def test_a_single_iteration_can_be_seen(tmp_path) -> None:
    figure = draw_curves([RunCurves("a", _lines(1, value__loss=float))], tmp_path / "a.png")
    assert figure.axes[0].lines[0].get_marker() == "."


def test_too_many_groups(tmp_path) -> None:
    runs = [RunCurves(str(n), _lines(m__x=float)) for n in range(len(COLOURS) + 1)]
    with pytest.raises(ValueError, match="11 groups of runs are too many to tell apart; draw at most 10"):
        draw_curves(runs, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_needs_no_screen() -> None:
    code = "import sys, vdbjax.evaluation.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def _config(recipe: str = "vail", *, seed: int = 0, env: str = "hopper", **bottleneck) -> dict:
    algorithm = {"ppo": {"clip": 0.2}, "bottleneck": {"info_constraint": 0.5, "beta_init": 0.3} | bottleneck}
    return {"recipe": recipe, "algorithm": algorithm, "environment": {"env": env}, "num_envs": 32, "seed": seed}


LABELS = {
    "seeds only": ([_config(seed=0), _config(seed=1)], ["vail", "vail"]),
    "recipes": ([_config("gail"), _config()], ["gail", "vail"]),
    "tasks": ([_config(env="ant"), _config(env="hopper")], ["vail on ant", "vail on hopper"]),
    "a setting of one recipe": (
        [_config("vail-fixed-beta", beta_init=0.1), _config(), _config("vail-fixed-beta", seed=3, beta_init=1.0)],
        ["vail-fixed-beta, bottleneck.beta_init 0.1", "vail", "vail-fixed-beta, bottleneck.beta_init 1.0"],
    ),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_keep_apart_what_differs_in_more_than_seeds(case: str) -> None:
    configs, labels = LABELS[case]
    assert recipe_labels(configs) == labels


def _run(path, config: dict, lines: list[dict] | None):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"config": config}))
    if lines is not None:
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _command(arguments: list[str], monkeypatch, capsys) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["plot", *arguments])
    code = 0
    try:
        plot.main()
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


GROUPINGS = {"recipe": ["vail"], "run": ["a", "b"]}


@pytest.mark.parametrize("group_by", GROUPINGS)
def test_command(group_by: str, tmp_path, monkeypatch, capsys) -> None:
    seen = {}

    def draw(runs, out, **options):
        seen.update(runs=runs, options=options)
        return draw_curves(runs, out, **options)

    monkeypatch.setattr(plot, "draw_curves", draw)
    runs = [_run(tmp_path / n, _config(seed=s), _lines(bottleneck__kl_nats=float)) for s, n in enumerate("ab")]
    out = tmp_path / "c.png"
    arguments = [*map(str, runs), "--out", str(out), "--group-by", group_by, "--metrics", KL, "--x", "iteration"]
    assert _command(arguments, monkeypatch, capsys) == (0, f"{out}\n", "")
    assert list(dict.fromkeys(run.label for run in seen["runs"])) == GROUPINGS[group_by]
    assert [run.info_constraint for run in seen["runs"]] == [0.5, 0.5]
    assert seen["options"] == {"metrics": (KL,), "x": "iteration"}
    assert out.is_file()


def test_runs_of_equal_folder_names_go_by_their_paths(tmp_path) -> None:
    assert run_labels([tmp_path / "a" / "run", tmp_path / "b"]) == ["run", "b"]
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    assert run_labels(paths) == [str(path) for path in paths]


@pytest.mark.parametrize("bottleneck", [{}, {"bottleneck": None}, {"bottleneck": "of another version"}])
def test_a_run_without_a_bottleneck_has_no_budget(tmp_path, bottleneck) -> None:
    config = _config("ppo") | {"algorithm": bottleneck}
    curves = curves_of(_run(tmp_path / "a", config, _lines(m__x=float)))
    assert (curves.label, curves.info_constraint, len(curves.lines)) == ("ppo", None, 3)


BAD_COMMANDS = {
    "no folder": (["{tmp}/none"], "none is not a run folder"),
    "no run given": ([], "give at least one run folder"),
    "no metrics file": (["{tmp}/good", "{tmp}/unstarted"], "unstarted has no metrics.jsonl yet"),
    "no iteration yet": (["{tmp}/empty"], "empty has no metrics yet"),
    "damaged config": (["{tmp}/damaged"], "damaged/config.json is damaged"),
    "misspelt metric": (["{tmp}/good", "--metrics", "bottleneck/kl_nat"], f"'bottleneck/kl_nat'; did you mean {KL}?"),
    "metric without its group": (["{tmp}/good", "--metrics", "kl_nats"], "'kl_nats'; did you mean bottleneck/kl_nats?"),
    "metric like none": (["{tmp}/good", "--metrics", "zzz"], f"unknown metric 'zzz'; known: {KL}"),
    "unknown axis": (["{tmp}/good", "--x", "hours"], "--x"),
    "unknown option": (["{tmp}/good", "--metric", "a"], "did you mean --metrics?"),
    "no picture": (["{tmp}/good", "--out", "{tmp}/c.txt"], "c.txt must end in one of .png, .pdf, .svg"),
    "no folder to write to": (["{tmp}/good", "--out", "{tmp}/none/c.png"], "none does not exist"),
}


DAMAGED = {
    "no settings": [],
    "no recipe": {**_config(), "recipe": ["a"]},
    "no algorithm": {**_config(), "algorithm": None},
    "no task": {**_config(), "environment": {}},
}


@pytest.mark.parametrize("config", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_config_without_what_a_curve_is_of_is_damaged(config, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"run/config\.json is damaged: it does not say which"):
        plot.run(plot.Options((_run(tmp_path / "run", config, _lines(m__x=float)),), tmp_path / "a.png"))


@pytest.mark.parametrize("case", BAD_COMMANDS)
def test_bad_commands(case: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)  # where curves.png would go
    _run(tmp_path / "good", _config(), _lines(bottleneck__kl_nats=float))
    _run(tmp_path / "unstarted", _config(), None)
    _run(tmp_path / "empty", _config(), [])
    _run(tmp_path / "damaged", {"algorithm": {}}, _lines(m__x=float))
    arguments, message = BAD_COMMANDS[case]
    code, out, err = _command([argument.format(tmp=tmp_path) for argument in arguments], monkeypatch, capsys)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not list(tmp_path.rglob("*.png"))
