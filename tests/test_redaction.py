"""Passwords and tokens: refused in settings, masked in errors, in no file and on no terminal."""

import base64
import json
import subprocess
from urllib.parse import quote, quote_plus

import pytest

from longctx import cells, config, console, redaction, results
from longctx.errors import CannotRunError, SettingError
from longctx.settings import Settings
from tests import warm
from tests.runs import ROOT, environ

SECRET_NAMES = """
PASS PASSWD PASSWORD PGPASSWORD MYSQL_PWD SSHPASS DB_PASS SMTP_PASS PASSPHRASE db-password
AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AZURE_STORAGE_CONNECTION_STRING CONN_STR
SENTRY_DSN AUTH NPM_CONFIG__AUTH TOKEN HF_TOKEN HF_TOKEN_2 API_TOKENS GITHUB_PAT API_KEY
OPENAI_APIKEY OPENAI_API_KEYS KAGGLE_KEY SSH_PRIVATE_KEY SECRET_KEY_BASE JWT_SECRET SESSION
SESSION_COOKIE COOKIE
AZURE_SAS CREDENTIALS
"""
OTHER_NAMES = """
TOKENIZERS_PARALLELISM TOKENIZER EOS_TOKEN MAX_NEW_TOKENS KEEP_TOKENS KEY_BINDINGS KEYBOARD MONKEY
SSH_AUTH_SOCK SSH_ASKPASS SSH_PUBLIC_KEY XAUTHORITY GIT_AUTHOR_NAME GPG_TTY HF_TOKEN_PATH
PGPASSFILE NETRC GOOGLE_APPLICATION_CREDENTIALS PWD OLDPWD PATH BYPASS DESKTOP_SESSION
XDG_SESSION_ID
DBUS_SESSION_BUS_ADDRESS
"""
HUB_TOKEN = "hf_" + "aB3dE5gH7j" * 4
SHAPED = [
    ("https://user:s3cret@host/data.jsonl", "s3cret"),
    ("https://user:p@ss-w0rd@host/data.jsonl", "ss-w0rd"),
    ("https://s3cret@host", "s3cret"),
    ("hf://datasets/a/b?token=s3cret&x=1", "s3cret"),
    ("https://host/x?a=b&X-Amz-Signature=s3cret", "s3cret"),
    ("https://host/x?sv=1&sig=s3cret", "s3cret"),
    (f"org/model-{HUB_TOKEN}", HUB_TOKEN),
    ("wandb_v1_" + "x0" * 20, "x0x0"),
    ("ghp_" + "A1" * 18, "A1A1"),
    ("Authorization: Bearer s3cret", "s3cret"),
    ("host=db password=s3cret1 user=x", "s3cret1"),
    ("AccountName=a;AccountKey=s3cret1==;x", "s3cret1"),
    ("sk-" + "a1B2" * 12, "a1B2"),
    ("key sk-proj-" + "a1B2_c3-D4" * 8, "a1B2"),
    ("sk-ant-api03-" + "a1-B2_c3D4" * 8 + "-xxAA", "B2_c3D4"),
    ("AKIAIOSFODNN7EXAMPLE", "IOSFODNN7"),
    ("x ASIAIOSFODNN7EXAMPLE", "IOSFODNN7"),
    ("glpat-" + "a1B2c" * 4, "a1B2c"),
    ("xoxb-1234567890-abcdef", "1234567890"),
    ("AIza" + "a1B2c" * 7, "a1B2c"),
    ("eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSM", "SflKxwRJSM"),
    ("sk_live_" + "a1B2c" * 5, "a1B2c"),
    ("SG." + "a1B2c" * 4 + "." + "d3E4f" * 8, "d3E4f"),
    ("gsk_" + "a1B2c" * 8, "a1B2c"),
    ("https://hooks.slack.com/services/T0/B0/a1B2c3", "a1B2c3"),
    ("npm_" + "a1B2c3" * 6, "a1B2c3"),
    ("pypi-" + "AgEIcHlwaS" * 5, "AgEIcHlwaS"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----", "MIIE"),
]
ORDINARY = [
    "mistralai/Mistral-7B-Instruct-v0.3",
    "hf-internal-testing/tiny-random-LlamaForCausalLM",
    "hf_internal_testing/tiny_random_llama_for_causal_lm_2",
    "/cache/hub/models--a--b/snapshots/0123456789abcdef0123456789abcdef01234567",
    "https://huggingface.co/a/b@main",
    "data/what?token.jsonl",
    "user@host",
    "org/risk-model-7b-instruct-0123456789abcdef",
    "sk-learn",
    "",
]


@pytest.mark.parametrize(("text", "secret"), SHAPED)
def test_what_looks_like_a_secret_is_masked(text, secret):
    assert secret not in redaction.masked(text)
    assert secret not in redaction.reason(ValueError(f"cannot reach {text}\nmore"))
    row = results.failed_row({}, ValueError(f"cannot reach {text}"), oom=False)
    assert secret not in row["error"]
    assert secret not in str(SettingError("X", 1, f"cannot reach {text}"))


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_names_are_left_alone(text):
    assert redaction.masked(text) == text


@pytest.mark.parametrize("name", ["MODEL_ID", "DATASET_ID", "LOGDIR", "WANDB_PROJECT", "CONTEXTS"])
@pytest.mark.parametrize(("text", "secret"), SHAPED)
def test_a_setting_that_holds_a_secret_is_refused_without_showing_it(name, text, secret, capsys):
    with pytest.raises(SettingError, match=f"{name}=.*holds a password or token") as caught:
        config.read(Settings, {name: text})
    assert secret not in str(caught.value)
    assert secret not in capsys.readouterr().err


def test_values_of_other_secret_variables_are_refused_and_those_of_ordinary_ones_are_not():
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "DATABASE_PASSWORD"):
        with pytest.raises(SettingError, match=r"WANDB_ENTITY=\*\*\*: holds") as caught:
            config.read(Settings, {"WANDB_ENTITY": "0123456789abcdef", name: "0123456789abcdef"})
        assert "0123456789abcdef" not in str(caught.value)
    given = {"MODEL_ID": "org/model", "HF_TOKEN_PATH": "org/model", "SHORT_KEY": "model", "KEY": ""}
    assert config.read(Settings, given)[0].model_id == "org/model"


@pytest.mark.parametrize(
    "text", ["HF_TOKEN=s3cret", "MODEL_ID=https://u:s3cret@host/x", "https://u:s3cret@host"]
)
def test_grids_record_no_secrets(text):
    with pytest.raises(CannotRunError) as caught:
        cells.assignment(text)
    assert "s3cret" not in str(caught.value)
    assert cells.assignment("MAX_NEW_TOKENS=5") == ("MAX_NEW_TOKENS", "5")


@pytest.fixture
def forgets():
    yield
    redaction.remember({})


def test_names_of_variables_that_hold_secrets_are_known_from_others():
    assert [name for name in SECRET_NAMES.split() if not redaction.is_secret_name(name)] == []
    assert [name for name in OTHER_NAMES.split() if redaction.is_secret_name(name)] == []
    ours = [known.name for known in config.variables(Settings)]
    assert [name for name in ours if redaction.is_secret_name(name)] == []


@pytest.mark.parametrize("name", SECRET_NAMES.split())
def test_what_such_a_variable_holds_is_masked_in_a_row_and_on_the_terminal(name, capsys, forgets):
    secret = 'tr0ub4dor "&3/+='
    config.read(Settings, {name: secret})
    spellings = [secret, quote(secret), quote(secret, safe=""), quote_plus(secret)]
    spellings += [json.dumps(secret), repr(secret), base64.b64encode(secret.encode()).decode()]
    for text in spellings:
        row = results.failed_row({}, ValueError(f"cannot reach {text} there"), oom=False)
        assert row["error"].replace('"***"', "***").replace("'***'", "***").replace("=", "") == (
            "ValueError: cannot reach *** there"
        )
        console.notice(f"cannot reach {text}")
    assert "tr0ub" not in capsys.readouterr().err


def test_values_are_found_in_addresses_and_lines_and_not_where_they_are_none(tmp_path, forgets):
    lines = "-----BEGIN\n0123456789abcdef0123\n"
    environ = {
        "DATABASE_URL": "postgres://me:p%40ss%2Fw0rd@host/db", "MY_KEY": lines,
        "ODBC": "Server=a;Pwd=hidden1;", "SSL_KEY": str(tmp_path), "USE_AUTH": "required",
        "A_PASS": "short", "B_PASS": "sesame", "OTHER": "not a secret",
    }  # fmt: skip
    redaction.remember(environ)
    text = "p@ss/w0rd p%40ss%2Fw0rd 0123456789abcdef0123 hidden1 sesame"
    assert redaction.masked(text) == "*** *** *** *** ***"
    for text in ("sesames", "short", "required", str(tmp_path), "not a secret", "me@host"):
        assert redaction.masked(text) == text


def test_long_hostile_text_is_masked_in_time():
    for part in ("sk-", "eyJ-", "://a", "?a", "-----BEGIN PRIVATE KEY-----", "password=", "_"):
        redaction.masked(part * 10_000)


@pytest.mark.model
def test_a_whole_run_writes_no_secret_anywhere(tiny_folder, tmp_path):
    secrets = {
        "HF_TOKEN": HUB_TOKEN,
        "HUGGING_FACE_HUB_TOKEN": "hub-" + "token" * 7,
        "WANDB_API_KEY": "0123456789" * 4,
        "AWS_SECRET_ACCESS_KEY": "aws/secret+access=key-of-forty-characters",
        "SOMETHING_ELSE": "value-of-a-variable-that-is-not-ours",
        "HTTPS_PROXY": "http://proxyuser:proxy-password@127.0.0.1:9",
    }
    folder = tmp_path / "work"
    folder.mkdir()
    # W&B notes the git remote of the folder it starts in.
    git = ["git", "-C", str(folder)]
    subprocess.run([*git, "init", "-q"], check=True)
    remote = "https://gituser:git-password@host.invalid/repo.git"
    subprocess.run([*git, "remote", "add", "origin", remote], check=True)
    settings = environ(
        tiny_folder, "logs", WANDB_MODE="offline", N_SAMPLES="1", CONTEXTS="200", KEEP_RATO="1"
    )
    done = warm.Process(
        tmp_path / "streams",
        [str(ROOT / "narrativeqa_eval.py")],
        {"HOME": str(tmp_path)} | secrets | settings,
        cwd=folder,
    )
    _, notes = done.communicate()
    assert done.returncode == 0, notes
    written = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
    names = [path.name for path in written]
    assert [name for name in names if name.endswith("_full.json")]
    assert [name for name in names if name.endswith(".wandb")]
    texts = {path.name: path.read_bytes() for path in written}
    assert any(b"host.invalid" in text for name, text in texts.items() if name.endswith(".wandb"))
    streams = {path.name: path.read_bytes() for path in (tmp_path / "streams").iterdir()}
    assert streams.keys() == {"stdout", "stderr"}
    assert all(streams.values())
    texts |= streams
    hidden = [*secrets.values(), "proxy-password", "git-password"]
    found = [(n, s) for n, text in texts.items() for s in hidden if s.encode() in text]
    assert found == []
