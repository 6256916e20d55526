"""Make the virtual environment that the Makefile's targets run in.

    python3 tools/setup.py .venv constraints.txt
    python3 tools/setup.py .venv-bench constraints.txt requirements-bench.txt

Nothing is done when the environment is complete and its requirements have not changed.
A file `.complete` in the environment says so; it is written last, so an environment
whose set-up was interrupted has none and is made again from the start (pip's cache
keeps what was downloaded). Needs Python's standard library alone.
"""

# Old Pythons must get as far as the message that they are too old: no new syntax here.
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 11), (3, 13)
NEEDED_GB = 7  # measured: 6.5 GB with torch's CUDA libraries
PROBE = "torchsummary==1.5.1"  # 3 KB, and the course needs it anyway


def stop(message):
    sys.exit("Set-up stopped: " + message)


def check_python():
    name = "{}.{}".format(*sys.version_info[:2])
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        stop(
            f"Python {name} was found, 3.11, 3.12 or 3.13 is needed. "
            "Name one, for example: make course PYTHON=python3.12"
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        stop(
            f"this Python has no venv module. On Debian or Ubuntu: "
            f"sudo apt install python{name}-venv"
        )


def check_disk():
    free_gb = shutil.disk_usage(str(ROOT)).free / 1e9
    if free_gb < NEEDED_GB:
        stop(
            f"{free_gb:.1f} GB are free in {ROOT}, {NEEDED_GB} GB are needed "
            "(torch brings its CUDA libraries)."
        )


def check_network(python):
    """Fetch one tiny package with pip's own settings: index, mirror or proxy."""
    with tempfile.TemporaryDirectory() as folder:
        command = [python, "-m", "pip", "download", "--quiet", "--no-deps"]
        options = ["--no-cache-dir", "--retries", "1", "--timeout", "20"]
        if subprocess.run(
            [*command, *options, "--dest", folder, PROBE], capture_output=True
        ).returncode:
            stop(
                "pip reaches no package index. Check the network "
                f"(behind a proxy: HTTPS_PROXY), then try: pip download {PROBE}"
            )


def fingerprint(constraints, *more):
    """What the environment depends on; its own place too, as it can't be moved."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in ("requirements.txt", "pyproject.toml", constraints, *more):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def works(python):
    return os.access(python, os.X_OK) and not subprocess.call([python, "-c", ""])


def main(env_name, constraints, *more):
    """`more`: files of requirements beyond the course's own."""
    # Two commands started at once: the second waits here, and finds all done.
    lock = os.open(str(ROOT), os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        bring_up_to_date(env_name, constraints, *more)
    finally:
        os.close(lock)


def bring_up_to_date(env_name, constraints, *more):
    env = ROOT / env_name
    python, stamp = str(env / "bin" / "python"), env / ".complete"
    wanted = fingerprint(constraints, *more)
    if stamp.exists() and works(python):
        if stamp.read_text() == wanted:
            return
        print(f"The requirements have changed: bringing {env_name} up to date.")
        check_network(python)
    else:
        check_python()
        if env.exists():
            print(f"{env_name} was left unfinished: making it again.")
            shutil.rmtree(str(env))
        check_disk()
        try:
            subprocess.run(
                [sys.executable, "-m", "venv", str(env)],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            check_network(python)
        except subprocess.CalledProcessError:
            shutil.rmtree(str(env), ignore_errors=True)
            stop(f"{sys.executable} could not make a virtual environment in {env}.")
        except BaseException:
            shutil.rmtree(str(env), ignore_errors=True)
            raise

    stamp.unlink(missing_ok=True)
    print(f"Installing into {env_name}: about 6 GB, a few minutes the first time.")
    bar = "on" if sys.stdout.isatty() else "off"
    install = [python, "-m", "pip", "install", "--progress-bar", bar, "--quiet"]
    if sys.stdout.isatty():
        install.remove("--quiet")
    install += ["-c", constraints, "-e", ".[test]"]
    for name in more:
        install += ["-r", name]
    if subprocess.call(install, cwd=str(ROOT)):
        stop("pip could not install everything (see above). Run the command again.")
    # A torch and a torchvision of different builds install and then do not import.
    pair = "import torch, torchvision; torchvision.ops.nms"
    if subprocess.call([python, "-c", pair]):
        stop(
            "torch and torchvision do not fit together (see above). README.md, "
            "'Troubleshooting', says how that happens."
        )
    stamp.write_text(wanted)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        stop("interrupted. The same command starts it again.")
