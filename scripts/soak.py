"""scripts/soak: BINARY N. N mixed requests against one server; exit status 1 if an answer is wrong or something grew."""

import base64
import glob
import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

CLIENTS = 4
WARM = 1000
MIB = 1 << 20
# What allocators keep, and no more than that.
MAY_GROW = {"keeper": MIB, "runner": MIB, "front": 16 * MIB}
# How long an idle server may take until its pool is full again and its connections are closed.
SETTLES = 30


def task(command, *args, **more):
    return {"command": command, "args": list(args), **more}


def python(program, **more):
    return task("python3", "-c", program, **more)


def limited(**limits):
    return {"resource_limits": limits}


def execute(expected, *tasks, **more):
    """A request whose results are to have these statuses."""

    def send(client, number):
        status, answer = client.json("POST", "/execute", {"tasks": list(tasks), **more})
        seen = [result["status"] for result in answer.get("results", [])]
        return None if (status, seen) == (200, expected) else f"{status}, {seen or answer}, not {expected}"

    return send


def files(client, number):
    content = os.urandom(1 + number % 5000)
    work = task("sh", "-c", "mkdir d; cp in d/out; sha256sum in", files={"in": {"base64": base64.b64encode(content).decode()}}, outputs=["d/*"])
    status, answer = client.json("POST", "/execute", {"tasks": [work]})
    found = answer["results"][0]["files"]["d/out"]["sha256"] if status == 200 else answer
    return None if found == hashlib.sha256(content).hexdigest() else f"{status}: {found}"


def judge(client, number):
    cases = [{"stdin": f"{number} {i}\n", "expected": f"{number + i}\n"} for i in range(2)]
    cases.append({"stdin": "1 1\n", "expected": "3\n"})
    program = {"command": "bash", "args": ["-c", "read a b; echo $((a + b))"], "cases": cases}
    status, answer = client.json("POST", "/judge", program)
    seen = [case["verdict"] for case in answer.get("cases", [])]
    return None if seen == ["Accepted", "Accepted", "WrongAnswer"] else f"{status}: {seen or answer}"


def blob(client, number):
    content = os.urandom(100_000)
    status, answer = client.json("PUT", "/blobs", content)
    if status != 201:
        return f"{status}: {answer}"
    name = answer["blob"]
    status, answer = client.json("POST", "/execute", {"tasks": [task("sha256sum", stdin={"blob": name})]})
    read = answer["results"][0]["stdout"] if status == 200 else answer
    gone, _ = client.ask("DELETE", f"/blobs/{name}")
    return None if (read, gone) == (f"{name[7:]}  -\n", 204) else f"{status}: {read}, {gone}"


def refused(client, number):
    status, answer = client.json("POST", "/execute", {"tasks": [{"command": ""}]})
    return None if status == 400 else f"{status}: {answer}"


def goes_away(client, number):
    """A client that does not wait for its answer: the task is ended."""
    client.connection.request("POST", "/execute", json.dumps({"tasks": [task("sleep", "30")]}), {"Content-Type": "application/json"})
    client.connection.close()


TRUE = execute(["Success"], task("true"))
STEPS = execute(
    ["Success", "Success", "Failure", "NotExecuted"],
    task("sh", "-c", "seq 1000 > numbers", name="make"),
    task("sort", "-n", "numbers", name="use", files={"numbers": {"from": "make", "file": "numbers"}}, cache=True),
    task("false", name="fails"),
    task("true", needs=["fails"]),
)
MIX = [
    ("true", TRUE),
    ("python", execute(["Success"], python("print(sum(range(1000)))"))),
    ("true", TRUE),
    ("failure", execute(["Failure"], task("sh", "-c", "echo no >&2; exit 3"))),
    ("files", files),
    ("true", TRUE),
    ("wall time", execute(["Timeout"], task("sleep", "9", **limited(wall_time_limit=50_000_000)))),
    ("judgement", judge),
    ("true", TRUE),
    ("memory", execute(["MemoryLimitExceeded"], python("b'1' * (100 << 20)", **limited(memory_limit=32 << 20)))),
    ("blob", blob),
    ("true", TRUE),
    ("output", execute(["ResourceLimitExceeded"], task("yes", **limited(max_output_size=1000)))),
    ("steps", STEPS),
    ("true", TRUE),
    ("processes left behind", execute(["Success"], task("sh", "-c", "sleep 30 & sleep 30 & echo done"))),
    ("pipes", execute(["Success", "Success"], task("seq", "9", name="a"), task("cat", name="b"), connect=[["a.stdout", "b.stdin"]])),
    ("true", TRUE),
    ("CPU time", execute(["CpuLimitExceeded"], task("sh", "-c", "while :; do :; done", **limited(cpu_time_limit=50_000_000)))),
    ("refused", refused),
    ("gone client", goes_away),
]


class Client:
    """One connection, kept open."""

    def __init__(self, address):
        self.connection = http.client.HTTPConnection(*address, timeout=120)

    def ask(self, method, path, body=None, headers={}):
        self.connection.request(method, path, body, headers)
        answer = self.connection.getresponse()
        return answer.status, answer.read()

    def json(self, method, path, body):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        status, answer = self.ask(method, path, body, {"Content-Type": "application/json"})
        return status, json.loads(answer)


def read(path):
    """The text of a file in /proc; empty when the process is gone."""
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def family(pid):
    """A process and all below it."""
    yield pid
    for children in glob.glob(f"/proc/{pid}/task/*/children"):
        for child in read(children).split():
            yield from family(int(child))


def role(pid):
    arguments = read(f"/proc/{pid}/cmdline").split("\0")
    return arguments[1] if len(arguments) > 1 and arguments[0].endswith("faber") and arguments[1] in ("serve", "front", "runner") else None


def resident(pid):
    lines = [line for line in read(f"/proc/{pid}/status").splitlines() if line.startswith("VmRSS:")]
    return int(lines[0].split()[1]) << 10 if lines else 0


def entries(directory):
    try:
        return len(os.listdir(directory))
    except OSError:
        return 0


def groups(instance):
    mounts = [line.split() for line in read("/proc/self/mountinfo").splitlines() if " - cgroup" in line]
    return sum(1 for mount in mounts for _ in os.walk(f"{mount[4]}/faber/{instance}"))


def look(keeper, instance):
    """Counts that have to stay, and memory by role."""
    pids = list(family(keeper))
    roles = {pid: role(pid) for pid in pids}
    of = lambda wanted: [pid for pid in pids if roles[pid] == wanted]
    counts = {
        "processes": len(pids),
        "zombies": sum(") Z " in read(f"/proc/{pid}/stat") for pid in pids),
        "groups": groups(instance),
        "mounts": sum(read(f"/proc/{pid}/mountinfo").count("\n") for pid in pids),
        "state": sum(len(found[1]) + len(found[2]) for found in os.walk(f"/run/faber/{instance}")),
        **{f"{name} fds": sum(entries(f"/proc/{pid}/fd") for pid in of(kind)) for name, kind in (("keeper", "serve"), ("front", "front"), ("runners'", "runner"))},
    }
    memory = {name: max(map(resident, of(kind)), default=0) for name, kind in (("keeper", "serve"), ("front", "front"), ("runner", "runner"))}
    return counts, memory


def settled(keeper, instance, expected=None):
    """The server as it is when nothing changes any more, or as soon as it is as expected."""
    deadline = time.monotonic() + SETTLES
    before, same = None, 0
    while time.monotonic() < deadline:
        counts, memory = look(keeper, instance)
        same = same + 1 if counts == before else 0
        before = counts
        if counts == expected or (expected is None and same >= 10):
            break
        time.sleep(0.2)
    return counts, memory


def run(address, numbers, wrong):
    """Sends the requests of these numbers, from a few clients at once."""
    numbers, lock = iter(numbers), threading.Lock()

    def work():
        client = Client(address)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None or len(wrong) >= 20:
                break
            name, send = MIX[number % len(MIX)]
            try:
                said = send(client, number)
            except Exception as error:
                client.connection.close()
                said = repr(error)
            if said:
                wrong.append(f"request {number}, {name}: {said}")
        client.connection.close()

    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def soak(keeper, instance, address, total, wrong):
    started, done = time.monotonic(), 0
    first = None
    marks = sorted({min(WARM, total), *(total * tenth // 10 for tenth in range(1, 11)), total})
    for mark in (mark for mark in marks if mark >= min(WARM, total)):
        run(address, range(done, mark), wrong)
        done = mark
        counts, memory = settled(keeper, instance, first and first[0])
        first = first or (counts, memory)
        told = ", ".join(f"{name} {bytes / MIB:.1f} MiB" for name, bytes in memory.items())
        print(f"{done:6} in {time.monotonic() - started:5.0f} s: {told}; " + ", ".join(f"{name} {count}" for name, count in counts.items()), flush=True)
        if wrong:
            return
    for name, count in counts.items():
        if count != first[0][name] or (name == "zombies" and count):
            wrong.append(f"{name}: {first[0][name]} after the first {marks[0]}, {count} at the end")
    for name, bytes in memory.items():
        if bytes > first[1][name] + MAY_GROW[name]:
            wrong.append(f"memory of the {name}: {first[1][name] / MIB:.1f} MiB after the first {WARM}, {bytes / MIB:.1f} at the end")


def main():
    binary, total = os.path.abspath(sys.argv[1]), int(sys.argv[2])
    wrong = []
    with tempfile.TemporaryDirectory() as directory:
        # The front, which is nobody, has to pass.
        os.chmod(directory, 0o755)
        settings = {"FABER_DATA_DIR": f"{directory}/data", "FABER_RATE_LIMIT__ENABLED": "false", "FABER_EXECUTION__QUEUE_TIMEOUT": "10m", "FABER_LOG__FORMAT": "json"}
        with open(f"{directory}/log", "w") as log:
            server = subprocess.Popen(
                [binary, "serve", "--open-mode", "--listen", "127.0.0.1:0"], cwd=directory, env=os.environ | settings,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
            )
        try:
            line = server.stdout.readline()
            if not line.startswith("Faber serves on http://"):
                sys.exit(f"no server: {line}{read(log.name)}")
            host, port = line.strip().rsplit("/", 1)[1].rsplit(":", 1)
            lines = [json.loads(line) for line in read(log.name).splitlines() if line.startswith("{")]
            instance = next(line["instance"] for line in lines if line.get("message") == "starting")
            soak(server.pid, instance, (host, int(port)), total, wrong)
            members = list(family(server.pid))
        finally:
            server.send_signal(signal.SIGTERM)
            status = server.wait()
        left = [pid for pid in members[1:] if role(pid)]
        if status or left or groups(instance):
            wrong.append(f"the end: exit status {status}, {len(left)} processes and {groups(instance)} groups left")
        if wrong:
            print(*read(log.name).splitlines()[-20:], *wrong, sep="\n", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
