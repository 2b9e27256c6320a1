"""Programs that the laboratory needs, and what it is run on."""

import datetime
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
WIRE = HERE.parent
ROOT = WIRE.parent.parent

# By program: the package of Debian and Ubuntu.
PROGRAMS = {"ip": "iproute2", "tc": "iproute2", "setpriv": "util-linux", "sysctl": "procps"}
# What decides how a flow of anabranch behaves.
MEASURED = ("src", "crates", "examples", "proto", "build.rs", "Cargo.toml", "Cargo.lock")


def target(default: Path) -> Path:
    if given := os.environ.get("CARGO_TARGET_DIR"):
        return Path(given).resolve()
    return default / "target"


RECORDS = target(ROOT) / "wire"
EMULATOR = target(WIRE) / "release/wire"
QUIC_FLOW = target(WIRE) / "release/quic-flow"


def peer() -> Path:
    if given := os.environ.get("PEER"):
        return Path(given).resolve()
    return target(ROOT) / "release/examples/peer"


def require() -> None:
    """Ends the program if it cannot work here, and names what is missing."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        packages = " ".join(sorted({PROGRAMS[program] for program in missing}))
        raise SystemExit(
            f"these programs are missing: {', '.join(missing)}\n"
            f"apt-get install -y {packages}"
        )
    if os.geteuid() != 0:
        raise SystemExit("root is needed, for network namespaces and TUN devices: sudo -E ...")
    if not Path("/dev/net/tun").exists():
        raise SystemExit("/dev/net/tun is missing: modprobe tun, or give it to the container")


def build() -> None:
    """Builds what is measured, unless `PEER` names a program, and what measures it."""
    if "PEER" not in os.environ:
        cargo("build", "--release", "--locked", "--example", "peer", directory=ROOT)
    elif not peer().is_file():
        raise SystemExit(f"PEER is no program: {peer()}")
    cargo("build", "--release", "--locked", directory=WIRE)


def cargo(*arguments: str, directory: Path) -> None:
    if shutil.which("cargo") is None:
        raise SystemExit("cargo is missing: https://rustup.rs")
    env = os.environ.copy()
    if given := env.get("CARGO_TARGET_DIR"):
        # Relative to where the command was given.
        env["CARGO_TARGET_DIR"] = str(Path(given).resolve())
    done = subprocess.run(["cargo", *arguments], cwd=directory, env=env)
    if done.returncode != 0:
        raise SystemExit(f"cargo {' '.join(arguments)} failed in {directory}")


def priority(*arguments: str) -> list[str]:
    """`chrt` with these arguments, if real-time priority is allowed."""
    command = ["chrt", *arguments]
    try:
        allowed = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    return command if allowed else []


def about() -> dict[str, object]:
    """Date, version and machine of a measurement."""
    cpu = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "cores": os.cpu_count(),
        "cpu": cpu[0] if cpu else platform.machine(),
        "kernel": f"{platform.system()} {platform.release()}",
        "busy": busy(),
        "real_time": bool(priority("-f", "20")),
    }


def commit() -> str:
    """The last commit that changed what is measured, or the program that was given."""
    if "PEER" in os.environ:
        return f"of {peer()}"

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-c", f"safe.directory={ROOT}", *arguments, "--", *MEASURED],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    name = git("log", "-1", "--format=%h", "--abbrev=7") or "unknown"
    return name + (" with changes" if git("status", "--porcelain", "-uno") else "")


def busy() -> int:
    """Processor time of other programs in percent, over two seconds."""

    def times() -> tuple[int, int]:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
        values = [int(field) for field in fields]
        # Idling, and waiting for a disk (proc(5)).
        return sum(values), values[3] + values[4]

    all_before, idle_before = times()
    time.sleep(2)
    all_after, idle_after = times()
    return round(100 - 100 * (idle_after - idle_before) / max(1, all_after - all_before))


def program(name: str) -> list[str]:
    """The command of a program beside this file."""
    return [sys.executable, "-B", str(HERE / name)]
