"""Ends with 0 if the server in this container takes requests, and with 1, and the reason, if it doesn't.

    healthcheck.py [--restart-after N]

With `--restart-after`, the server is ended after N checks in a row to which nothing at all was answered, once there had
been an answer: it hangs, and the container's restart policy starts it again. A server that answers that it isn't ready
is left alone. That needs `init: true`, since nothing can end a container's first process from inside.
"""

import http.client
import os
import signal
import sys
from pathlib import Path

INITS = ("docker-init", "tini", "catatonit")
# Gone with the container, unlike a file of a volume.
SILENT = Path(os.environ.get("TMPDIR", "/dev/shm")) / "condconv-unanswered"


def ask() -> int:
    """The status of the answer; raises OSError if there is none."""
    # The metrics port has connections left when clients have taken all of the other one.
    port = os.environ.get("CONDCONV_METRICS_PORT") or os.environ.get("CONDCONV_PORT", "8000")
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=4)
    connection.request("GET", "/healthz")
    answer = connection.getresponse()
    print(answer.status, answer.read(500).decode(errors="replace"))
    return answer.status


def count_silence(silent: Path) -> int:
    """How many checks in a row nobody has answered, this one included; 0 while the server starts."""
    try:
        number = int(silent.read_text()) + 1
    except (OSError, ValueError):
        return 0
    silent.write_text(str(number))
    return number


def end_server(parent: int = 1, *, of: tuple[str, ...] = INITS) -> list[int]:
    """Kill what the container's first process has started, this check not included; their process ids.

    Only where that is one of those that engines put there, so that nothing happens outside of a container.
    """
    if Path(f"/proc/{parent}/comm").read_text().strip() not in of:
        return []
    ended = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        process = int(status.parent.name)
        if int(after_name[1]) == parent and process != os.getpid():
            os.kill(process, signal.SIGKILL)
            ended.append(process)
    return ended


def main(restart_after: int | None) -> int:
    """Check, and count; the exit code."""
    try:
        status = ask()
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer: {error or type(error).__name__}")
        if restart_after is not None and count_silence(SILENT) >= restart_after:
            SILENT.unlink(missing_ok=True)
            print(f"ended {end_server()}")
        return 1
    if restart_after is not None:
        SILENT.write_text("0")
    return int(status != 200)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[2]) if sys.argv[1:2] == ["--restart-after"] else None))
