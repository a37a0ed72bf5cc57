"""The worker for the tools written in Python; src/worker.rs describes the protocol."""

import importlib.metadata
import os
import platform
import sys
import time

tool, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

if tool == "portpicker":
    import portpicker

    package = "portpicker"
    release = portpicker.return_port

    def pick():
        try:
            return portpicker.pick_unused_port()
        except portpicker.NoFreePortFoundError:
            return 0

elif tool == "recipe":
    import recipe

    package = "fasteners"
    kept = {}

    def pick():
        port = recipe.FreePort.find(os.environ["RECIPE_DIR"], range(first, last + 1))
        if port is None:
            return 0
        kept[port.number] = port
        return port.number

    def release(number):
        kept.pop(number).release()

elif tool == "portlock":
    import portlock

    package = "portlease"
    kept = {}

    def pick():
        try:
            port = portlock.FreePort.try_new(first, last)
        except portlock.Exhausted:
            return 0
        kept[port.port] = port
        return port.port

    def release(number):
        kept.pop(number).release()

else:
    sys.exit(f"no tool is named {tool}")


def keep(count):
    start = time.perf_counter_ns()
    ports = [pick() for _ in range(count)]
    return [time.perf_counter_ns() - start, *ports]


def cycle(milliseconds):
    start = now = time.perf_counter_ns()
    end, times = start + milliseconds * 1_000_000, 0
    while now < end:
        port = pick()
        if port:
            release(port)
            times += 1
        now = time.perf_counter_ns()
    return [times, now - start]


version = importlib.metadata.version(package)
print("ready", version, "on Python", platform.python_version(), flush=True)
for line in sys.stdin:
    command, *number = line.split()
    match command:
        case "pick":
            print(pick(), flush=True)
        case "keep":
            print(*keep(int(number[0])), flush=True)
        case "cycle":
            print(*cycle(int(number[0])), flush=True)
