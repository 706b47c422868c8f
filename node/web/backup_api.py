"""The backup, in the API: what is in place, and a file of all positions on demand."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from attrs import asdict
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from node.backup.files import on_one_disk
from node.backup.service import Backup
from node.core import Core


class BackupIn(BaseModel):
    """Where a file of all positions is to be written."""

    model_config = ConfigDict(extra="forbid", strict=True)

    path: str = Field(description="the whole path, on the node's machine, of a file that does not exist yet")


def backup_router(core: Core) -> APIRouter:
    router = APIRouter(prefix="/api/v1")

    @router.get("/backup")
    async def status() -> dict[str, Any]:
        """Where it is kept, whether on the disk of the data, and of how many positions; `strange` are files that cannot
        be read, with the reason."""
        with core.backup.lent() as backup:
            return backup_view(core, backup)
        raise AssertionError("a recalled loan raises")

    @router.post("/backup", status_code=201)
    async def write(said: BackupIn) -> dict[str, Any]:
        """Write one sealed file of all positions that can still matter."""
        with core.positions.lent() as positions:
            assert positions.backup is not None
            records, pieces = await positions.backup.everything(positions)
        size = await core.backup.call(Backup.write_all, Path(said.path), records, pieces)
        return {"path": said.path, "positions": len(records), "size": size}

    return router


def backup_view(core: Core, backup: Backup) -> dict[str, Any]:
    one_disk = _on_one_disk(core.config.backup_folder, core.config.data)
    return {**asdict(backup.status()), "one_disk": one_disk, "strange": dict(backup.strange)}


@cache
def _on_one_disk(first: Path, second: Path) -> bool:
    """Asked once: a disk that hangs must not hold up the feed."""
    return on_one_disk(first, second)
