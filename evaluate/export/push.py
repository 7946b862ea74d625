"""`hapicl export --push NAME`: an exported folder to the Hugging Face hub, by huggingface_hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...common.errors import UserError

INSTALL = "pip install hapicl[clients]"


def log_in() -> Any:
    """The hub's interface, seen to be logged in; called before any work.

    Raises:
        UserError: if huggingface_hub is not installed, nobody is logged in, or the hub does not answer.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import LocalTokenNotFoundError
    except ImportError as error:
        raise UserError(f"--push needs huggingface_hub: {INSTALL}") from error
    api = HfApi()
    try:
        api.whoami()
    except LocalTokenNotFoundError as error:
        raise UserError("--push needs a login at the hub: `hf auth login`, or HF_TOKEN=...") from error
    except _hub_errors() as error:
        raise UserError(f"the hub refuses the login ({_reason(error)}); try `hf auth login`") from error
    return api


def push_folder(api: Any, folder: Path, name: str) -> str:
    """Upload a folder into a model repository, made private if it is not there yet.

    Args:
        api: of `log_in`.
        folder: what `export_hub` wrote.
        name: of the repository, `user/model`.

    Returns:
        Its address.

    Raises:
        UserError: if the hub refuses or cannot be reached; the folder stays.
    """
    try:
        address = str(api.create_repo(name, repo_type="model", private=True, exist_ok=True))
        api.upload_folder(
            folder_path=folder, repo_id=name, repo_type="model", commit_message="Backbone by hapicl export"
        )
    except _hub_errors() as error:
        raise UserError(
            f"the hub did not take {name} ({_reason(error)}); {folder} is whole: put that right and send it "
            f"by `hf upload {name} {folder}`"
        ) from error
    return address


def _hub_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises for a bad name, a refusal of the hub, or a lost connection."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # the bases are those of the HTTP library beneath, whichever this version uses: a lost connection is one
    return (HfHubHTTPError, *HfHubHTTPError.__bases__, HFValidationError, OSError)


def _reason(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
