"""Make a virtual environment, or bring it up to date; the Makefile calls this.

    python3 tools/setup.py .venv/.complete requirements.txt constraints.txt ...

The first argument is the stamp, the rest what it depends on. The stamp is written last:
an environment without one is unfinished, and is made again from the start (pip's cache
keeps what was downloaded). One that holds neither MARKER nor a stamp was made by
someone else, and is never touched.
"""

# Old Pythons must get as far as the message that they are too old: no new syntax here.
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

MARKER = ".made-by-make"
NEEDED_GB = 7  # measured: 6.5 GB with PyTorch's CUDA libraries


def stop(message):
    sys.exit("Set-up stopped: " + message)


def check_machine():
    """Stop if no environment can be made here."""
    name = "{}.{}".format(*sys.version_info[:2])
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        stop(
            f"Python {name} was found, 3.11, 3.12 or 3.13 is needed. "
            "Name one, for example: make course PYTHON=python3.12"
        )
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        stop(
            "this Python has no venv module. On Debian or Ubuntu: "
            f"sudo apt install python{name}-venv"
        )
    free_gb = shutil.disk_usage(".").free / 1e9
    if free_gb < NEEDED_GB:
        stop(
            f"{free_gb:.1f} GB are free in {Path.cwd()}, {NEEDED_GB} GB are needed "
            "(PyTorch brings its CUDA libraries)."
        )


def make(env):
    """Make the environment, over what an unfinished one has left."""
    if env.is_dir():
        (env / MARKER).touch()  # first: whatever interrupts this, the folder is ours
        for old in env.iterdir():
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(str(old))
            elif old.name != MARKER:
                old.unlink()
    check_machine()
    env.mkdir(exist_ok=True)
    (env / MARKER).touch()
    if subprocess.call([sys.executable, "-m", "venv", str(env)]):
        stop(f"{sys.executable} could not make a virtual environment in {env}.")


def bring_up_to_date(stamp, files):
    env = stamp.parent
    python = env / "bin" / "python"
    digest = hashlib.sha256(b"".join(Path(f).read_bytes() for f in files)).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == digest:
        stamp.touch()  # newer files, the same text; or another command has done it
        return
    ours = stamp.exists() or (env / MARKER).exists()
    ours = ours or (env.is_dir() and not any(env.iterdir()))
    if not ours and os.path.lexists(str(env)):
        stop(
            f"`make` did not make the {env} that is here, and leaves it alone. Rename "
            "it and run the command again; or use it without `make`: install "
            "requirements.txt in it and open the notebooks."
        )
    if stamp.exists() and python.exists():
        (env / MARKER).touch()
        stamp.unlink()
    else:
        make(env)

    print(f"Installing into {env}: {NEEDED_GB} GB, a few minutes the first time.")
    install = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    install += [] if sys.stdout.isatty() else ["--quiet"]
    for name in files:
        install += ["-c" if name.startswith("constraints") else "-r", name]
    if subprocess.call(install):
        stop(
            "pip could not install everything (see above). If it reached no package "
            "index, check the network (behind a proxy: HTTPS_PROXY). Then run the "
            "command again."
        )
    # A torch and a torchvision of different builds install and then do not import.
    pair = "import torch, torchvision; torchvision.ops.nms"
    if subprocess.call([str(python), "-c", pair]):
        stop(
            "torch and torchvision do not fit together (see above). "
            "docs/troubleshooting.md says how that happens."
        )
    stamp.write_text(digest)


if __name__ == "__main__":
    lock = os.open(".", os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two commands at once, one waits here
        bring_up_to_date(Path(sys.argv[1]), sys.argv[2:])
    except KeyboardInterrupt:
        stop("interrupted. The same command goes on with it.")
