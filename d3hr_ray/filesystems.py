"""From a path or URI to a pyarrow filesystem that bears with its storage: throttling and passing errors are retried."""

import errno
import functools
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
import tenacity

S3_ATTEMPTS = 10  # of one request, by the AWS SDK: about 25 s; its own default of 3 gives up after 0.1 s
ATTEMPTS, LONGEST_WAIT = 6, 20  # of a whole file, by us; seconds
# What the SDK hands on without a retry of its own (429, which other makers' S3 answers when busy), or after it.
PASSING = re.compile(
    r"HTTP (status|response code):? (429|5\d\d)|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE"
    r"|REQUEST_TIMEOUT|SlowDown|TooManyRequests|curlCode: (28|35|52|55|56)\b(?!.*Connection timed out)"
)
PASSING_ERRNO = (errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET)  # of network file systems


def is_passing(error: BaseException) -> bool:
    """True for an error of storage that a later try may not meet: overload, an inner error, a stale NFS handle."""
    causes = [e for e in (error, error.__cause__) if isinstance(e, OSError)]
    return any(e.errno in PASSING_ERRNO or PASSING.search(str(e)) is not None for e in causes)


# Decorates what touches storage and may be done again: reads, and writes of whole files.
patient = tenacity.retry(
    retry=tenacity.retry_if_exception(is_passing),
    wait=tenacity.wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT),
    stop=tenacity.stop_after_attempt(ATTEMPTS),
    reraise=True,
)


def split_query(uri: str) -> tuple[str, str]:
    """'s3://bucket/x?scheme=http' => ('s3://bucket/x', '?scheme=http'). A local path has no query."""
    base, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return base, mark + query


def absolute(uri: str) -> str:
    """A local path as an absolute one, without a last slash; other URIs as they are.

    Workers have other working folders than the driver, so paths are made absolute before they travel.
    """
    base, query = split_query(uri)
    if "://" in uri:
        return base.rstrip("/") + query
    try:
        return str(Path(uri).expanduser().absolute())
    except RuntimeError as error:  # ~name of nobody
        raise ValueError(f"{uri}: {error}") from error


def is_same_place(uri: str, other: str) -> bool:
    """Whether two paths or URIs are one, but for how they are written: from here, from the root, with a last slash."""
    return absolute(uri) == absolute(other)


def is_within(uri: str, folder: str) -> bool:
    """Whether a path or URI is a folder, or lies anywhere in it, also by way of .. and of links."""

    def plain(uri: str) -> str:
        base, _ = split_query(absolute(uri))
        return base if "://" in base else os.path.realpath(base)

    return f"{plain(uri)}/".startswith(f"{plain(folder)}/")


@functools.lru_cache(64)
def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """Path or URI => (filesystem, path on it). Raises ValueError for a scheme that pyarrow does not know.

    An S3-compatible store is named by `?endpoint_override=HOST:PORT&scheme=http` or by AWS_ENDPOINT_URL.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), absolute(uri)
    if urlsplit(uri).password is not None:
        raise ValueError("a URI with a secret in it would be written into the run's records; use the environment")
    if "#" in uri:
        raise ValueError(f"{uri}: # begins a fragment in a URI, which names no file; write %23 for it")
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"{uri}: cannot open this URI ({error}); use a local path, s3:// or gs://, with %20 for a space and so on"
        ) from error
    if isinstance(filesystem, pafs.S3FileSystem):
        filesystem = _patient_s3(uri, filesystem.region)
    return filesystem, path


def _patient_s3(uri: str, region: str) -> pafs.S3FileSystem:
    """The filesystem of an S3 URI with more retries, and one request instead of three for a small file."""
    options: dict[str, Any] = dict(parse_qsl(split_query(uri)[1].removeprefix("?")))
    flags = {k: v.lower() == "true" for k, v in options.items() if v.lower() in ("true", "false")}
    retries = pafs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS)
    options |= flags | {"region": region, "retry_strategy": retries, "allow_delayed_open": True}
    return pafs.S3FileSystem(**options)
