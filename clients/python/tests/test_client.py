"""Every call against a real server, that at FABER_URL, which is in open mode: `python test_client.py`, or pytest."""

from __future__ import annotations

import asyncio
import pathlib
import tempfile

import faber_client
from faber_client import ApiError, AsyncFaber, ConnectionFailed, Faber, Gone, InvalidRequest, NotFound

BASH = {"command": "bash", "args": ["-c", "echo out; echo err >&2"]}


def test_tasks() -> None:
    with Faber() as faber:
        assert faber.health()["status"] == "healthy"
        result = faber.command("bash", ["-c", "sort; exit 3"], stdin="b\na\n")
        assert (result["status"], result["stdout"], result["exit_code"]) == ("Failure", "a\nb\n", 3)
        first, second = faber.execute(
            [
                {"name": "ask", "command": "bash", "args": ["-c", "echo 6 7; read answer; echo $answer >&2"]},
                {"name": "reply", "command": "bash", "args": ["-c", "read a b; echo $((a * b))"]},
            ],
            connect=[("ask.stdout", "reply.stdin"), ("reply.stdout", "ask.stdin")],
        )
        assert (first["stderr"], second["status"]) == ("42\n", "Success")
        assert any(image["name"] == "host" for image in faber.images())
        assert isinstance(faber.languages(), list)
        judged = faber.judge(
            {"command": "cat", "cases": [{"name": "1", "stdin": "x", "expected": "x"}, {"name": "2", "expected": "y"}]}
        )
        assert [case["verdict"] for case in judged["cases"]] == ["Accepted", "WrongAnswer"]


def test_streams() -> None:
    with Faber() as faber:
        events = list(faber.stream([{"command": "bash", "args": ["-c", r"printf 'a\377'; printf b"]}]))
        assert b"".join(event.bytes for event in events if event.name == "stdout") == b"a\xffb"
        assert (events[-1].name, events[-2].result["status"]) == ("done", "Success")
        # What ends lines elsewhere ends none here.
        ends = "a\u2028b\u2029c\u0085d\rdata: e\n"
        events = list(faber.stream([{"command": "cat", "stdin": ends}]))
        assert b"".join(event.bytes for event in events if event.name == "stdout").decode() == ends
        for event in faber.stream([{"command": "bash", "args": ["-c", "echo on; sleep 60"]}]):
            if event.name == "stdout":
                break
        try:
            next(iter(faber.stream([{"command": " "}])))
            raise AssertionError("it makes no sense")
        except InvalidRequest as error:
            assert error.details == "Invalid command: command cannot be empty"


def test_blobs() -> None:
    with Faber() as faber, tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "bytes")
        path.write_bytes(bytes(range(256)) * 1000)
        blob = faber.put_blob(path)
        assert blob == faber.put_blob(path.read_bytes()) and blob["size"] == 256_000
        assert faber.get_blob(blob["blob"]) == path.read_bytes()
        copy = pathlib.Path(directory, "copy")
        faber.save_blob(blob["blob"], copy)
        assert copy.read_bytes() == path.read_bytes()
        result = faber.command("sha256sum", stdin={"blob": blob["blob"]})
        assert str(result["stdout"]).split()[0] == blob["blob"].split(":")[1]
        faber.delete_blob(blob["blob"])
        try:
            faber.get_blob(blob["blob"])
            raise AssertionError("it is gone")
        except NotFound:
            pass


def test_jobs() -> None:
    with Faber() as faber:
        accepted = faber.submit({"tasks": [BASH]}, idempotency_key="python-1")
        assert accepted["id"] == faber.submit({"tasks": [BASH]}, idempotency_key="python-1")["id"]
        job = faber.wait(accepted["id"], timeout=60)
        assert job["state"] == "done"
        response = job["response"]
        assert response is not None and response["results"][0]["stdout"] == "out\n"
        assert accepted["id"] in [one["id"] for one in faber.jobs(limit=10)["jobs"]]
        faber.cancel(accepted["id"])
        sleeping = faber.submit({"tasks": [{"command": "sleep", "args": ["50"]}]})["id"]
        assert faber.wait(sleeping, timeout=0.1)["state"] in ("queued", "running")
        faber.cancel(sleeping)
        assert faber.wait(sleeping)["state"] == "cancelled"


def test_sessions() -> None:
    with Faber() as faber:
        with faber.session(files={"a/b.txt": "b"}, idle_timeout="5m") as session:
            session.write("c d.bin", b"\x00\x01", mode="0600")
            result = session.command("bash", ["-c", "stat -c %a 'c d.bin'; cat a/b.txt; echo left > e"])
            assert result["stdout"] == "600\nb", result
            assert session.read("e") == b"left\n"
            assert [entry["name"] for entry in session.list()] == ["a", "c d.bin", "e"]
            assert [entry["name"] for entry in session.list("a")] == ["b.txt"]
            session.remove("e")
            for path in ("..", "../../sessions", "a/../../..", ".", "", "/a", "a//b"):
                try:
                    session.remove(path)
                    raise AssertionError(f"{path} leads elsewhere")
                except ValueError:
                    pass
            names = [event.name for event in session.stream([BASH])]  # type: ignore[list-item]
            assert "stdout" in names and names[-1] == "done"
            kept = session.snapshot()
            assert session.id in [one["id"] for one in faber.sessions()]
            assert session.info()["state"] == "open"
        assert session.info()["state"] == "ended"
        try:
            session.command("true")
            raise AssertionError("it has ended")
        except Gone as error:
            assert "it was deleted" in error.details
        result = faber.command("cat", ["a/b.txt"], archives=[{"blob": kept["blob"], "format": kept["format"]}])
        assert result["stdout"] == "b"


def test_errors() -> None:
    with Faber("http://127.0.0.1:9", retries=0) as faber:
        try:
            faber.health()
            raise AssertionError("nobody is there")
        except ConnectionFailed as error:
            assert "127.0.0.1:9" in str(error)
    with Faber() as faber:
        try:
            faber.execute([])
            raise AssertionError("nothing to do")
        except ApiError as error:
            assert (error.status, error.error) == (400, "Validation error")


def test_async() -> None:
    async def everything() -> None:
        async with AsyncFaber() as faber:
            results = await asyncio.gather(*(faber.command("echo", [str(n)]) for n in range(5)))
            assert [result["stdout"] for result in results] == [f"{n}\n" for n in range(5)]
            events = [event async for event in faber.stream([BASH])]  # type: ignore[list-item]
            assert events[-1].name == "done"
            with tempfile.TemporaryDirectory() as directory:
                path = pathlib.Path(directory, "bytes")
                path.write_bytes(b"x" * 300_000)
                blob = await faber.put_blob(path)
                assert len(await faber.get_blob(blob["blob"])) == 300_000
            async with faber.session() as session:
                await session.write("a", b"1")
                result = await session.command("cat", ["a"])
                assert result["stdout"] == "1"
                names = [event.name async for event in session.stream([BASH])]  # type: ignore[list-item]
                assert names[-1] == "done"
            job = await faber.wait((await faber.submit({"tasks": [BASH]}))["id"])
            assert job["state"] == "done"

    asyncio.run(everything())


def main() -> None:
    tests = [test_tasks, test_streams, test_blobs, test_jobs, test_sessions, test_errors, test_async]
    for test in tests:
        test()
        print(test.__name__, "ok")
    print(faber_client.__name__, len(tests))


if __name__ == "__main__":
    main()
