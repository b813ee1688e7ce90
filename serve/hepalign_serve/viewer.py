"""The viewer: one page and its scripts as static files; NiiVue comes with the package, so no network is needed."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from hepalign_serve import problems

WEB = Path(__file__).parent / "web"
# A vendored file has its version in its name: a browser may keep it for good.
_FOR_GOOD = {"Cache-Control": "public, max-age=31536000, immutable"}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page() -> FileResponse:
    """The viewer's page; it needs no token, its calls do."""
    return FileResponse(WEB / "index.html")


@router.get("/viewer/vendor/{name}")
async def vendored(name: str) -> FileResponse:
    """A library as its authors released it."""
    return FileResponse(_named(WEB / "vendor", name), headers=_FOR_GOOD)


@router.get("/viewer/{name}")
async def part(name: str) -> FileResponse:
    """A script or style of the page."""
    return FileResponse(_named(WEB, name))


def _named(folder: Path, name: str) -> Path:
    files = {path.name: path for path in folder.iterdir() if path.is_file()}
    if name not in files:
        raise problems.not_found()
    return files[name]
