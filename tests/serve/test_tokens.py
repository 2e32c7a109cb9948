import os

import pytest
from typer.testing import CliRunner

from delineate.cli import serve as cli_serve
from delineate.cli.app import app
from delineate.cli.serve import ServeError
from delineate.serve.tokens import TokenError, parse_tokens, read_tokens
from delineate.storage.swapping import locked

A, B = "0123456789abcdef", "fedcba9876543210"


def test_names_comments_and_blank_lines(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"# who may ask\n\nslicer {A}  # the workstation\n{B}\n")
    assert read_tokens(file) == {A: "slicer", B: "token-4"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no token"),
        ("# nothing", "holds no token"),
        ("ann short", "line 1: a token has 16 or more letters"),
        (f"ann {A}/../x", "a token has 16 or more letters"),
        (f"ann b {A}", "a name and a token, with a blank"),
        (f"an\u202en {A}", "a name and a token"),
        (f"ann {A}\nben {A}", "line 2: every line has a name and a token of its own"),
        (f"ann {A}\nann {B}", "line 2: every line"),
    ],
)
def test_what_cannot_be_is_refused_by_its_line_and_no_token_is_told(text, words):
    with pytest.raises(TokenError, match=words) as refused:
        parse_tokens(text, "here")
    assert A not in str(refused.value)


def test_files_that_are_none(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe" * 99)
    with pytest.raises(TokenError, match="not UTF-8"):
        read_tokens(tmp_path / "binary")
    (tmp_path / "large").write_bytes(b"x" * (1 << 21))
    with pytest.raises(TokenError, match="larger than 1 MiB"):
        read_tokens(tmp_path / "large")
    with pytest.raises(TokenError, match=r"--tokens .*: No such file"):
        cli_serve._tokens(tmp_path / "none")


def test_tokens_come_from_a_file_then_the_environment_then_are_made(tmp_path, monkeypatch):
    (tmp_path / "tokens").write_text(f"ann {A}")
    monkeypatch.setenv("DELINEATE_TOKENS", f"ben {B}")
    assert cli_serve._tokens(tmp_path / "tokens") == ({A: "ann"}, None)
    assert cli_serve._tokens(None) == ({B: "ben"}, None)
    assert "DELINEATE_TOKENS" not in os.environ  # what is started from here does not see them
    made, shown = cli_serve._tokens(None)
    assert made == {shown: "token-1"}


@pytest.fixture
def run(monkeypatch):
    """What would be served."""
    found = {}

    def fake(service, users, made, listening, host, public, as_json):
        found.update(service=service, users=users, host=host, public=public)
        listening.close()

    monkeypatch.setattr(cli_serve, "_run", fake)
    monkeypatch.setattr(cli_serve, "_leave", lambda: None)
    return found


def serve(*arguments):
    return CliRunner().invoke(app, ["serve", "--port", "0", *map(str, arguments)])


def test_options_reach_the_server(run, tmp_path):
    (tmp_path / "tokens").write_text(f"ann {A}")
    words = ["--waiting", 3, "--minutes", 2, "--rate", 9, "--upload-mib", 7, "--keep-hours", 2, "--keep-gib", 0.5]
    done = serve(
        *words, "--grace", 4, "--name", "a.example", "--tokens", tmp_path / "tokens", "--results", tmp_path / "r"
    )
    assert done.exit_code == 0, done.output
    limits = run["service"].limits
    assert (limits.places, limits.seconds, limits.a_minute, limits.upload) == (3, 120, 9, 7 << 20)
    assert (limits.keep_seconds, limits.keep_bytes, limits.grace) == (7200, 1 << 29, 4)
    assert (run["users"], run["public"]) == ({A: "ann"}, ["a.example"])
    assert (tmp_path / "r" / "results").is_dir()
    assert A not in done.output


def test_a_folder_is_served_from_once_and_a_temporary_one_is_gone_at_the_end(run, tmp_path):
    assert serve().exit_code == 0
    assert not run["service"].results.folder.exists()
    with locked(tmp_path, "serves from it"):
        busy = serve("--results", tmp_path)
    assert "another command serves from it" in str(busy.exception)
    assert serve("--results", tmp_path).exit_code == 0
    assert run["service"].results.folder.is_dir()


def test_usage_that_cannot_be(run, monkeypatch):
    done = serve("--log", "xml")
    assert (done.exit_code, "--log is one of text, json" in done.output) == (2, True)
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    with pytest.raises(ServeError, match=r"pip install 'delineate\[serve\]'"):
        cli_serve._need_extra()
