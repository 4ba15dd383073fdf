"""Putting a saved scheduler on the hub."""

from __future__ import annotations

from pathlib import Path

__all__ = ["push"]


def push(
    folder: Path,
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
) -> str:
    """Upload a folder's files to a repository, which is made if there is none; return its address there.

    Raises:
        ImportError: without huggingface_hub.
        ConnectionError: when the hub cannot be reached or refuses.
    """
    try:
        import huggingface_hub
    except Exception as error:
        raise ImportError("push_to_hub needs huggingface_hub: pip install 'gas-solver[diffusers]'") from error
    try:
        repo = huggingface_hub.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        done = huggingface_hub.upload_folder(
            repo_id=repo,
            folder_path=folder,
            token=token,
            commit_message=commit_message or "Upload scheduler",
            create_pr=create_pr,
            path_in_repo=subfolder,
        )
    except Exception as error:  # of requests, httpx or the hub itself, by its version
        why = (str(error).splitlines() or [""])[0]
        raise ConnectionError(
            f"could not push to {repo_id} ({type(error).__name__}: {why}): "
            "log in with `hf auth login`, or save_pretrained to a folder and upload it later"
        ) from error
    return str(done)
