"""What is sent to a host first, as text, and run there by its python3. It imports nothing of vmkit.

It reads one line of JSON from standard input:

- `do`: "run", with `length` and `sha256` of a tar file that follows: unpack it, have it carry `request` out, and print
  the answer. A keeper in a session of its own sees to that, so the end of the connection changes nothing there. Should
  what it runs be killed, it has the code settle that.
- `do`: "ask": print how `run` stands. One that has not begun never will.
- `do`: "done": remove what `run` left.

What it prints is one line of JSON. `run` names the folder that all of it is in: HOME/carried/RUN.
"""

# The syntax is that of any Python 3, so that an old one can say that it is too old.

import fcntl
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import time

LEAST = (3, 11)
VOID_SECONDS = 86400  # a run that was given up does not come so late
START = """
import sys
sys.path.insert(0, sys.argv[1] + "/lib")
from vmkit.hotfix.far.agent import main
main(*sys.argv[1:])
"""


def say(**value):
    """Answer."""
    try:
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()
    except OSError:
        os._exit(0)  # nobody listens any more


def sweep(base):
    """Forget runs that were given up long ago."""
    for name in os.listdir(base):
        path = os.path.join(base, name, "void")
        try:
            if time.time() - os.stat(path).st_mtime > VOID_SECONDS:
                shutil.rmtree(os.path.dirname(path), ignore_errors=True)
        except OSError:
            continue


def take_lock(folder):
    """The lock of a run; None if somebody has it."""
    lock = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def result(folder):
    """What came out; None if nothing did yet."""
    try:
        with open(os.path.join(folder, "result.json")) as f:
            return json.load(f)
    except FileNotFoundError:
        return None


def child(folder, how):
    """Run the code to its end."""
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(sys.executable, [sys.executable, "-I", "-B", "-c", START, folder, how])
        finally:
            os._exit(127)
    os.waitpid(pid, 0)


def keep(folder):
    """See to it that there is a result, and that the code does not stay."""
    for how in ("run", "settle"):
        child(folder, how)
        if result(folder) is not None:
            break
    shutil.rmtree(os.path.join(folder, "lib"), ignore_errors=True)


def run(folder, asked):
    """Carry a request out."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        return say(refused="this run was given up before it began")
    lock = take_lock(folder)
    if lock is None:
        return say(refused="this run was given up before it began")
    os.set_inheritable(lock, True)  # what is run holds it too, should the keeper be killed
    data = sys.stdin.buffer.read(asked["length"])
    if len(data) != asked["length"] or hashlib.sha256(data).hexdigest() != asked["sha256"]:
        shutil.rmtree(folder, ignore_errors=True)
        return say(refused="what was sent did not arrive whole")
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extraction_filter = tarfile.data_filter
            tar.extractall(os.path.join(folder, "lib"))
        if asked["forget"]:
            open(os.path.join(folder, "void"), "w").close()  # whatever becomes of this, it goes with the next sweep
        with open(os.path.join(folder, "request.json"), "w") as f:
            json.dump(asked["request"], f)
    except OSError as e:
        shutil.rmtree(folder, ignore_errors=True)
        return say(refused="cannot write there: %s" % e)
    keeper = os.fork()
    if keeper == 0:
        os.setsid()
        out = os.open(os.path.join(folder, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDWR)
        for number, fd in enumerate((nothing, out, out)):
            os.dup2(fd, number)
        try:
            keep(folder)
        finally:
            os._exit(0)
    os.close(lock)
    os.waitpid(keeper, 0)
    found = stand(folder)
    if asked["forget"]:
        shutil.rmtree(folder, ignore_errors=True)
    return say(**found)


def stand(folder):
    """How a run stands."""
    found = result(folder)
    if found is not None:
        return {"state": "ended", "result": found}
    if take_lock(folder) is None:
        return {"state": "runs"}
    try:
        with open(os.path.join(folder, "log"), errors="replace") as f:
            last = f.read()[-2000:]
    except OSError:
        last = ""
    return {"state": "cut", "log": last}


def ask(folder):
    """Say how a run stands; one that is not there is kept from beginning."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        if not os.path.exists(os.path.join(folder, "void")):
            return say(**stand(folder))
    with open(os.path.join(folder, "void"), "w"):
        return say(state="nothing")


def main():
    """Read what is asked, and do it."""
    asked = json.loads(sys.stdin.buffer.readline())
    if sys.version_info < LEAST:
        return say(refused="its python3 is %d.%d, and %d.%d is needed" % (*sys.version_info[:2], *LEAST))
    if os.uname().machine != asked["machine"]:
        return say(refused="it is %s, what is carried there %s" % (os.uname().machine, asked["machine"]))
    if os.geteuid() != 0:
        return say(refused="the processes of its VMs can be patched by root alone")
    base = os.path.join(os.environ.get("VMKIT_HOME") or "/var/lib/vmkit", "carried")
    try:
        os.makedirs(base, 0o700, exist_ok=True)
        sweep(base)
    except OSError as e:
        return say(refused="cannot write there: %s" % e)
    folder = os.path.join(base, os.path.basename(asked["run"]))
    if asked["do"] == "run":
        return run(folder, asked)
    if asked["do"] == "ask":
        return ask(folder)
    if result(folder) is not None or take_lock(folder) is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return say(state="removed")


main()
