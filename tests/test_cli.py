"""The command line: errors, suggestions, exit statuses, help, and what goes to which stream."""

import io
import os
import pty
import re
import resource
import select
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from command import CLEAN, CORRUPTED, run, run_alone
from typer.main import get_command

import lensbridge
from lensbridge.cli import COMMANDS, app, completion, demo, output
from lensbridge.cli.grid import Cell, Grid
from lensbridge.viz.numbers import bytes_as_text

# --- start-up --------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["--version"], ["--help"], ["lens", "--help"], ["lnes"]])
def test_what_needs_no_model_imports_nothing_large(argv: list[str]) -> None:
    script = (
        "import sys\n"
        "from lensbridge.cli import main\n"
        f"status = main({argv!r})\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_version_is_there_at_once() -> None:
    def seconds(script: str) -> float:
        """Of the processor, so that other work on this machine does not count."""
        times = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(times)

    version = "from lensbridge.cli import main; main(['--version'])"
    assert seconds(version) - seconds("pass") < 0.3


# --- wrong arguments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["lnes", "demo", "x"], "'lens'"),
        (["lens", "demo", "x", "--jsno"], "--json"),
        (["lens", "demo", "x", "--dtype", "flaot32"], "'float32'"),
        (["steer", "demo", "x", "--toward", "a", "--away", "b", "--read", "meen"], "'mean'"),
        (["harvest", "demo", "x", "o", "--point", "z", "--packing", "concta"], "'concat'"),
        (["lens", "demo"], "TEXT"),
        (["lens", "demo", "x", "--top", "0"], "--top"),
        (["plan", "demo", "--batch", "two"], "--batch"),
        (["steer", "demo", "x", "--toward", "a"], "--away"),
    ],
)
def test_wrong_arguments_are_one_line_with_what_is_right(
    argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run(capsys, *argv)
    assert ran.status == 2
    assert ran.out == ""
    assert ran.err.startswith("lensbridge: ")
    assert ran.err.count("\n") == 1
    assert told in ran.err
    assert "--help' lists the arguments." in ran.err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["points", "demo", "--point", "resid_psot"], "'resid_post'"),
        (["points", "dmoe"], "'demo'"),
        (["lens", "demo", CLEAN, "--target", "Parisian nights"], "Parisian nights"),
        (["lens", "./no-such-folder", "x"], "There is no folder"),
        (["attn", "demo", "x", "--head", "1"], "--layer"),
        (["attn", "demo", "x", "--layer", "9"], "4 layers"),
        (["attn", "demo", "x", "--layer", "1", "--head", "-5"], "4, 0 to 3"),
        (["attn", "demo", "x", "--query", "40"], "position 40"),
        (["patch", "demo", CLEAN, "The"], "position"),
        (["patch", "demo", CLEAN, CLEAN], "do not differ"),
        (["patch", "demo", CLEAN, CORRUPTED, "--point", "mlp_uot"], "'mlp_out'"),
        (["steer", "demo", "x", "--toward", "a", "--away", "b", "--layer", "7"], "4 layers"),
        (["adapters", "LlamaForCasualLM"], "'LlamaForCausalLM'"),
        (["plan", "demo", "--length", "100000"], "context"),
        (["lens", "demo", "x", "--html", "lens.pdf"], ".html"),
        (["lens", "demo", "x", "--png", "no-such-folder/lens.png"], "There is no folder"),
        (["harvest", "demo", "no-such.txt", "o", "--point", "z"], "no-such.txt"),
    ],
)
def test_an_error_is_explained_on_stderr_alone(
    argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["--json"]):
        ran = run(capsys, *argv, *more)
        assert ran.status == 1
        assert ran.out == ""
        assert ran.err.startswith("lensbridge: ")
        assert told in ran.err
        assert "Traceback" not in ran.err
        assert "unexpected" not in ran.err


def test_debug_shows_the_traceback() -> None:
    argv = ["points", "demo", "--point", "resid_psot"]
    ran = run_alone([*argv, "--debug"])
    assert ran.status == 1
    assert "Traceback (most recent call last)" in ran.err
    assert "UnknownPointError" in ran.err
    assert "Traceback" not in run_alone(argv).err


def test_an_error_that_nobody_expected_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(out: Path) -> None:
        raise ZeroDivisionError("seven")

    monkeypatch.setattr(demo, "check_folder", broken)
    ran = run(capsys, "demo")
    assert ran.status == 1
    assert ran.err.count("\n") == 1
    assert "unexpected ZeroDivisionError: seven" in ran.err
    assert "--debug" in ran.err


def test_an_interrupt_has_its_own_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(out: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "check_folder", interrupted)
    assert run(capsys, "demo").status == 130


def test_a_reader_that_stops_early_is_no_error() -> None:
    script = "import sys; from lensbridge.cli import main; sys.exit(main())"
    command = f'"{sys.executable}" -c "{script}" adapters | head -2'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


# --- help ------------------------------------------------------------------------------------


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys)
    assert ran.status == 2
    assert all(name in ran.out for name in COMMANDS)
    assert "Exit status" in ran.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples_that_parse(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run(capsys, name, "--help")
    assert ran.status == 0
    assert ran.err == ""
    assert "Examples:" in ran.out
    assert "Raises" not in ran.out
    shown = " ".join(re.sub("[│\n]", " ", ran.out).split())
    for example in COMMANDS[name].EXAMPLES:
        assert " ".join(example.split()[:3]) in shown
        assert _parses(example), example


def _parses(example: str) -> bool:
    """Whether the arguments of a command line are taken by the command; nothing is run."""
    import shlex

    program, name, *arguments = shlex.split(example)
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    try:
        command.make_context(name, list(arguments))
    except typer.Exit:
        return False
    return program == "lensbridge"


def test_the_page_names_every_command_and_option_and_its_examples_parse() -> None:
    import shlex

    page = (Path(__file__).parent.parent / "docs/how-to/command-line.md").read_text("utf-8")
    common, *sections = re.split(r"^## ", page, flags=re.MULTILINE)
    told = {section.partition("\n")[0]: section for section in sections}
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert list(told) == list(commands)
    for name, command in commands.items():
        for names in (param.opts + param.secondary_opts for param in command.params):
            shown = [f"`{one}" in common + told[name] for one in names if one.startswith("--")]
            assert any(shown) or not shown, f"{name}: {names}"
        examples = re.findall(r"^```sh\n(.+?)^```$", told[name], re.MULTILINE | re.DOTALL)
        assert examples
        for example in examples:
            joined = shlex.join(shlex.split(example.replace("\\\n", " ")))
            assert joined.startswith(f"lensbridge {name}")
            assert _parses(joined)


def test_every_command_but_the_server_speaks_json() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    without = [
        name
        for name, command in commands.items()
        if not any("--json" in param.opts for param in command.params)
    ]
    assert without == ["serve"]


# --- terminals -------------------------------------------------------------------------------


def test_markup_in_a_users_text_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "lens", "demo", "[red]x[/red] :smile:")
    assert ran.status == 0
    assert "[" in ran.out
    assert ":smile:"[0] in ran.out
    ran = run(capsys, "[red]x[/red]")
    assert "'[red]x[/red]'" in ran.err


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "lens", "demo", "a\x1b[31mb")
    assert "\x1b" not in ran.out
    assert "\x1b" not in run(capsys, "points", "de\x1b[31mmo").err


def in_terminal(argv: list[str], columns: int, **environment: str) -> str:
    """What a command writes on a terminal of a width."""
    main, other = pty.openpty()
    script = "import sys; from lensbridge.cli import main; sys.exit(main())"
    variables = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), **environment}
    process = subprocess.Popen(
        [sys.executable, "-c", script, *argv],
        stdout=other,
        stderr=other,
        stdin=other,
        env=variables,
        close_fds=True,
    )
    os.close(other)
    written = b""
    while select.select([main], [], [], 60)[0]:
        try:
            part = os.read(main, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        written += part
    process.wait(10)
    os.close(main)
    return written.decode()


def test_a_terminal_gets_colours_unless_it_wants_none() -> None:
    argv = ["lens", "demo", CLEAN]
    coloured = in_terminal(argv, 120)
    assert re.search(r"\x1b\[[0-9;]*48;", coloured)  # a background
    assert not re.search(r"\x1b\[[0-9;]*[34]8;", in_terminal(argv, 120, NO_COLOR="1"))
    assert "\x1b" not in run_alone(argv).out


def test_a_narrow_terminal_gets_several_tables_and_no_cut_token() -> None:
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", in_terminal(["lens", "demo", CLEAN], 50))
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in shown.split("\n")]
    assert max(map(len, lines)) <= 50
    for label in ("3:·Tower", "7:·city", "8:·of", "·Paris 99"):
        assert label in shown
    wide = run_alone(["lens", "demo", CLEAN]).out
    assert sum("final_post" in line for line in wide.splitlines()) == 1
    assert sum("final_post" in line for line in lines) > 1


def test_a_grid_is_broken_where_the_room_ends() -> None:
    from rich.console import Console

    cells = [[Cell("x" * 8) for _ in range(7)] for _ in range(2)]
    grid = Grid("title", "row", ["a", "b"], [f"c{i}" for i in range(7)], cells)
    for width in (15, 30, 45, 200):
        console = Console(width=width, record=True, file=io.StringIO())
        for table in grid.tables(console):
            console.print(table)
        text = console.export_text()
        assert all(f"c{i}" in text for i in range(7))
        assert text.count("x" * 8) == 14


def test_progress_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import time\n"
        "from lensbridge.cli import working\n"
        "working.PATIENCE = 0.1\n"
        "with working.working('counting', 4) as advance:\n"
        "    for i in range(4):\n"
        "        print('chatter'); advance(i + 1); time.sleep(0.2)\n"
        "print('result')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "result\n"  # a library's chatter went to stderr
    assert "counting" not in done.stderr
    main, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=other,
        text=True,
        env={**os.environ, "TERM": "xterm"},
    )
    out, _ = process.communicate(timeout=60)
    os.close(other)
    assert out == "result\n"
    assert "counting" in os.read(main, 100_000).decode()
    os.close(main)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1 kB"), (123_456_789, "123 MB")),
        *((999_499, "999 kB"), (999_600, "1 MB"), (3 * 10**18, "3e+03 PB")),
    ],
)
def test_bytes_have_a_unit(count: int, text: str) -> None:
    assert bytes_as_text(count) == text


def test_what_is_no_number_is_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    output.show_json({"a": torch.tensor([1.5, float("nan")]), "b": Path("x"), "c": (True, None)})
    told = capsys.readouterr().out
    assert '"a": [\n    1.5,\n    null\n  ]' in told
    assert '"b": "x"' in told


# --- completion ------------------------------------------------------------------------------


def test_the_shell_completes_commands_models_points_and_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def completed(*words: str) -> list[str]:
        line = " ".join(["lensbridge", *words])
        variables = {
            "_LENSBRIDGE_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words)),
            "HF_HUB_CACHE": str(tmp_path / "hub"),
        }
        return run_alone([], **variables).out.split()

    (tmp_path / "hub" / "models--owner--name").mkdir(parents=True)
    assert completed("le") == ["lens"]
    assert completed("lens", "de") == ["demo"]
    assert completed("lens", "own") == ["owner/name"]
    assert "resid_post" in completed("patch", "demo", "a", "b", "--point", "resid_p")
    assert completed("harvest", "demo", "x", "--packing", "pa") == ["pad"]


def test_points_and_folders_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert completion.points("resid_po") == ["resid_post"]
    assert "blocks.3.attn.hook_pattern" in completion.points("blocks.3.attn.")
    names = set(lensbridge.load("demo").hook_names)
    assert any(one in names for one in completion.points("blocks.1.hook_resid"))
    (tmp_path / "my-model").mkdir()
    (tmp_path / "a-file").write_text("")
    monkeypatch.chdir(tmp_path)
    assert completion.models("./m") == ["./my-model"]
    assert completion.models(f"{tmp_path}/") == [f"{tmp_path}/my-model"]


# --- the server ------------------------------------------------------------------------------


def test_serve_hands_the_model_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import inspect

    from lensbridge import serve

    signature, calls = inspect.signature(serve.run), []
    monkeypatch.setattr(serve, "run", lambda *a, **k: calls.append(signature.bind(*a, **k)))
    assert run(capsys, "serve", "demo", "--port", "0", "--no-browser").status == 0
    options = ["--dtype", "float64", "--max-tokens", "99"]
    assert run(capsys, "serve", "demo", *options).status == 0
    first, second = (one.arguments for one in calls)
    assert (first["model"], first["port"], first["open_browser"]) == ("demo", 0, False)
    assert second["model"].cfg.dtype.itemsize == 8
    assert second["host"] == "127.0.0.1"
    assert (first["limits"].max_tokens, second["limits"].max_tokens) == (256, 99)
    options = ["--api", "--token", "a-secret", "--name", "lens.example.org"]
    assert run(capsys, "serve", "demo", *options).status == 0
    third = calls[2].arguments
    assert third["api"]
    assert (third["token"], third["hosts"]) == ("a-secret", ("lens.example.org",))
    assert third["limits"] == lensbridge.remote.Limits()
    monkeypatch.setenv("LENSBRIDGE_TOKEN", "of the environment")
    assert run(capsys, "serve", "demo").status == 0
    assert calls[3].arguments["token"] == "of the environment"


def test_serve_without_its_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lensbridge.cli import serve

    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    ran = run(capsys, "serve", "demo")
    assert ran.status == 1
    assert "pip install 'lensbridge[serve]'" in ran.err
