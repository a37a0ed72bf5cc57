
# Appended to the client from docs/protocol.md: carries out the orders of the test, one per line, and
# reports the outcomes. Arguments: lock directory.

import sys
import time

directory = sys.argv[1]
# Additions of the client's second part, if this follows it.
try:
    whole = [record("api under test/größe %41"), is_kept]
except NameError:
    whole = [b"held %d - - -" % os.getpid()]
held = None
spare = []  # Duplicates that stay open, as in a child that is being spawned.


def say(line):
    print(f"@{line}", flush=True)


def hear():
    return sys.stdin.readline().split()


def attempt(ports):
    global held
    try:
        port, held = lease(directory, ports, *whole)
        say(f"leased {port}")
    except OSError as error:
        say(f"none: {error}")


def pausing(flock):
    """Returns an flock() that reports that a file was opened, and waits before it locks the file."""

    def paused(file, operation):
        fcntl.flock = flock
        say("opened")
        hear()
        flock(file, operation)

    return paused


class Counted(socket.socket):
    """Sockets that count how often any of them is bound."""

    binds = 0

    def bind(self, address):
        Counted.binds += 1
        super().bind(address)


class Inherited(socket.socket):
    """A socket of which another process still has a duplicate when it is closed."""

    def close(self):
        if self.fileno() >= 0 and self.getsockname()[1] != 0:
            spare.append(os.dup(self.fileno()))
        super().close()


def compete(first, last, oracle, times):
    """Leases and binds repeatedly, and counts overlaps and failed binds."""
    overlaps = failed_binds = done = 0
    end_of_patience = time.monotonic() + 60
    while done < times:
        try:
            port, lease_ends = lease(directory, range(first, last + 1), *whole)
        except OSError:
            if time.monotonic() > end_of_patience:
                raise
            time.sleep(0.001)
            continue
        end_of_patience = time.monotonic() + 60
        done += 1
        with lease_ends:
            path = f"{oracle}/{port}"
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                overlaps += 1
                continue
            server = socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET)
            with server:
                try:
                    server.bind(("", port))
                    server.listen()
                except OSError:
                    failed_binds += 1
            os.unlink(path)
    say(f"{overlaps} overlaps, {failed_binds} failed binds")


say("started")
while words := hear():
    match words:
        case ["lease", first, last]:
            attempt(range(int(first), int(last) + 1))
        case ["reserved", name, root]:
            port, line = reserved(directory, name, unquote(root))
            port, held = lease(directory, [port], *whole, line)
            say(f"leased {port}")
        case ["pause"]:
            fcntl.flock = pausing(fcntl.flock)
            say("ready")
        case ["count"]:
            socket.socket = Counted
            say("ready")
        case ["binds"]:
            say(Counted.binds)
        case ["inherit"]:
            socket.socket = Inherited
            say("ready")
        case ["release"]:
            held.close()
            say("released")
        case ["duplicate", port]:
            same = os.stat(f"{directory}/{port}")
            for entry in os.listdir("/proc/self/fd"):
                with contextlib.suppress(OSError):
                    if os.path.samestat(os.stat(f"/proc/self/fd/{entry}"), same):
                        spare.append(os.dup(int(entry)))
                        break
            say(len(spare))
        case ["fork"]:
            child = os.fork()
            if child == 0:
                held.close()
                os._exit(0)
            os.waitpid(child, 0)
            say("ended")
        case ["compete", first, last, oracle, times]:
            compete(int(first), int(last), oracle, int(times))
