"""Objects: named bytes in a folder or in an S3-compatible store.

Owns the place's URL, writes that are read back, deletions that are looked after, and replacing an object only where it still
is the one that was read. What the objects mean is `archives`'.

The library's blocking calls, each in a thread of Python's: its own asynchronous ones end on threads of the library, and one that
comes for the interpreter while that ends aborts the process.
"""

import asyncio
import fcntl
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import LocalStore, S3Store

from shared.errors import Corrupted, Misconfigured, Unavailable

REQUEST_SECONDS = 30
CONNECT_SECONDS = 5
RETRIES_MAX = 3


class Moved(Exception):
    """The object is another one than was read, or there is one where there was none."""


class Held(NamedTuple):
    """An object's bytes, and what tells this version of it from others."""

    data: bytes
    tag: str


class Objects:
    """The objects of one place: `file:///…`, a plain path, or `s3://bucket/prefix` (credentials and endpoint from AWS_*).

    Every method raises Unavailable when the place cannot be reached or does not let us.
    """

    def __init__(self, url: str) -> None:
        self._folder: Path | None = None
        self._s3: S3Store | None = None
        parts = urlsplit(url)
        if parts.scheme == "s3" and parts.netloc:
            prefix = parts.path.strip("/")
            self.url = f"s3://{parts.netloc}/{prefix}".rstrip("/")
            self._s3 = S3Store(
                parts.netloc,
                prefix=prefix or None,
                # An endpoint without TLS is a store on a network of one's own, and named on purpose.
                client_options={
                    "allow_http": True,
                    "timeout": timedelta(seconds=REQUEST_SECONDS),
                    "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
                },
                retry_config={"max_retries": RETRIES_MAX, "retry_timeout": timedelta(seconds=REQUEST_SECONDS)},
            )
        elif parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
            self._folder = Path(unquote(parts.path))
            self.url = self._folder.as_uri()
        elif "://" not in url and url:
            self._folder = Path(url).absolute()
            self.url = self._folder.as_uri()
        else:
            raise Misconfigured(f"{url!r} is no place for an archive: a folder, file:///… or s3://bucket/prefix is")

    async def get(self, name: str) -> Held | None:
        """The object as it stands now, None where there is none."""
        async with _reaching(self.url):
            store = self._opened()
            if store is None:
                return None
            try:
                data, e_tag = await asyncio.to_thread(_get, store, name)
            except FileNotFoundError:
                return None
            # A folder's tags are made of times and sizes; the bytes themselves tell better.
            return Held(data, _sha256(data) if self._folder else e_tag)

    async def put(self, name: str, data: bytes) -> None:
        """Write an object and read it back; Corrupted when it does not come back as it was written."""
        async with _reaching(self.url):
            store = self._opened(make=True)
            assert store is not None  # noqa: S101  made
            await asyncio.to_thread(obstore.put, store, name, data, use_multipart=False)
            await self._sync(name)
        await self._read_back(name, data)

    async def replace(self, name: str, data: bytes, *, expected: Held | None) -> None:
        """Write an object in one step where `expected` stands (None: where nothing stands). Raises Moved otherwise."""
        async with _reaching(self.url):
            if self._folder:
                await asyncio.to_thread(self._replace_file, self._folder / name, data, expected)
            else:
                await self._replace_in_s3(name, data, expected)
        await self._read_back(name, data)

    async def delete(self, name: str) -> None:
        """Delete an object, if it is there, and look that it is gone; Corrupted when it is not."""
        async with _reaching(self.url):
            store = self._opened()
            if store is not None:
                try:
                    await asyncio.to_thread(obstore.delete, store, name)
                except FileNotFoundError:
                    return
        if await self.get(name) is not None:
            raise Corrupted(f"{self.url}/{name} is still there after it was deleted", object=name)

    async def names(self, folder: str) -> list[str]:
        """The names of the objects in `folder`, which are prefixed with it."""
        async with _reaching(self.url):
            store = self._opened()
            if store is None:
                return []
            return await asyncio.to_thread(_names, store, f"{folder}/")

    async def folders(self) -> list[str]:
        """The names of the folders that objects lie in."""
        async with _reaching(self.url):
            store = self._opened()
            if store is None:
                return []
            found = await asyncio.to_thread(obstore.list_with_delimiter, store)
            return sorted(prefix.strip("/") for prefix in found["common_prefixes"])

    def _opened(self, *, make: bool = False) -> LocalStore | S3Store | None:
        """None for a folder that is not there: reading makes none."""
        if self._folder is None:
            return self._s3
        if not make and not self._folder.is_dir():
            return None
        return LocalStore(self._folder, mkdir=make)

    async def _read_back(self, name: str, data: bytes) -> None:
        found = await self.get(name)
        if found is None or found.data != data:
            raise Corrupted(f"{self.url}/{name} does not come back as it was written", object=name)

    async def _replace_in_s3(self, name: str, data: bytes, expected: Held | None) -> None:
        store = self._opened()
        assert store is not None  # noqa: S101  an S3 store is open from the start
        try:
            if expected is None:
                await asyncio.to_thread(obstore.put, store, name, data, mode="create")
            else:
                await asyncio.to_thread(obstore.put, store, name, data, mode={"e_tag": expected.tag})
        except (AlreadyExistsError, PreconditionError) as error:
            # Our own write, sent again by the library after a lost answer, finds itself.
            found = await self.get(name)
            if found is None or found.data != data:
                raise Moved(name) from error

    def _replace_file(self, path: Path, data: bytes, expected: Held | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            found = _sha256(path.read_bytes()) if path.exists() else None
            if found != (expected.tag if expected else None):
                raise Moved(path.name)
            new = path.with_suffix(".new")
            with new.open("wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            new.rename(path)
            _sync_folder(path.parent)

    async def _sync(self, name: str) -> None:
        """A folder's object is on the disk, or a trim would rest on what a power cut can take away."""
        if self._folder:
            await asyncio.to_thread(_sync_file, self._folder / name)


def _get(store: LocalStore | S3Store, name: str) -> tuple[bytes, str]:
    """An object and the store's tag of it."""
    found = obstore.get(store, name)
    return bytes(found.bytes()), found.meta["e_tag"] or ""


def _names(store: LocalStore | S3Store, prefix: str) -> list[str]:
    return [meta["path"] for page in obstore.list(store, prefix) for meta in page]


@asynccontextmanager
async def _reaching(url: str) -> AsyncIterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise Unavailable(f"the archive at {url} cannot be used: {reason}", archive=url) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
