"""What the operating system refuses, in a sentence: where, what, and what to do."""

from __future__ import annotations

import errno
import re

from rag_serving import ServingError

# an operator's mistake: told in a line; anything else is a defect and wants its traceback
EXPECTED = (ServingError, ImportError, OSError)
_ROOM = "make room there, or choose another place"
_ALLOWED = "let this user do that, or choose another place"
_CUT = re.compile(r"\d+ requested and \d+ written")
_ADVICE = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "choose a file system that holds larger files",
    errno.EACCES: _ALLOWED,
    errno.EPERM: _ALLOWED,
    errno.EROFS: "choose a place that can be written",
    errno.EISDIR: "give a file, or take the directory away",
    errno.ENOTDIR: "give a directory, or take the file away",
    errno.EEXIST: "give another place, or take away what is there",
    errno.ENOENT: "check the path",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.EIO: "check the disk",
}


def sentence(error: OSError) -> str:
    """Return what a person is told of an error of the operating system."""
    places = " and ".join(str(place) for place in (error.filename, error.filename2) if place is not None)
    if error.errno is None:  # a library's own words; numpy's, of an array that was not written whole, say nothing of the disk
        return f"a file could not be written whole ({error}); {_ROOM}" if _CUT.fullmatch(str(error)) else str(error)
    what = error.strerror or errno.errorcode.get(error.errno, str(error.errno))
    return f"{f'{places}: ' if places else ''}{what}; {_ADVICE.get(error.errno, 'check the path and its file system')}"


def told(error: BaseException) -> str:
    """Return what an operator is told of any error."""
    return sentence(error) if isinstance(error, OSError) else str(error)
