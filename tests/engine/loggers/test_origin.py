"""What config.json keeps of a session: the command and the revisions of code."""

import shlex
import subprocess
import sys

from hapicl.engine.loggers.origin import git_state, session_origin


def git(folder, *words):
    person = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", "-C", folder, *person, *words], check=True, capture_output=True, text=True)


def test_the_revision_of_the_users_folder_is_kept_and_whether_it_was_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "--quiet")
    assert git_state(tmp_path) is None  # nothing is committed yet
    (tmp_path / "recipe.yaml").write_text("epochs: 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    (tmp_path / "photo.jpg").write_text("files that git does not know are not its business")
    head = git(tmp_path, "rev-parse", "HEAD").stdout.strip()
    assert git_state(tmp_path) == {"revision": head, "changed": False}
    (tmp_path / "recipe.yaml").write_text("epochs: 2\n")
    monkeypatch.chdir(tmp_path)
    session = session_origin(7)
    assert session["git"] == {"revision": head, "changed": True}
    assert session["folder"] == str(tmp_path)
    assert session["at_step"] == 7
    assert shlex.split(session["command"]) == sys.orig_argv


def test_without_git_nothing_is_kept_and_nothing_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None
