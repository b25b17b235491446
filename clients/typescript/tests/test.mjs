// Every call against a real server, that at FABER_URL, which is in open mode: node test.mjs, where faber-client is installed.

import assert from "node:assert/strict";
import { ApiError, ConnectionFailed, Faber, bytesOf } from "faber-client";

const faber = new Faber();
const tests = {
  async tasks() {
    assert.equal((await faber.health()).status, "healthy");
    const result = await faber.command("bash", ["-c", "sort; exit 3"], { stdin: "b\na\n" });
    assert.deepEqual([result.status, result.stdout, result.exit_code], ["Failure", "a\nb\n", 3]);
    const ask = { name: "ask", command: "bash", args: ["-c", "echo 6 7; read answer; echo $answer >&2"] };
    const reply = { name: "reply", command: "bash", args: ["-c", "read a b; echo $((a * b))"] };
    const connect = [["ask.stdout", "reply.stdin"], ["reply.stdout", "ask.stdin"]];
    assert.equal((await faber.execute([ask, reply], { connect }))[0].stderr, "42\n");
    assert((await faber.images()).some((image) => image.name === "host"));
    assert(Array.isArray(await faber.languages()));
    const cases = [{ name: "1", stdin: "x", expected: "x" }, { name: "2", expected: "y" }];
    const judged = await faber.judge({ command: "cat", cases });
    assert.deepEqual(judged.cases.map((one) => one.verdict), ["Accepted", "WrongAnswer"]);
  },
  async streams() {
    const events = [];
    for await (const event of faber.stream([{ command: "bash", args: ["-c", "printf 'a\\377'; printf b"] }])) events.push(event);
    const bytes = events.filter((event) => event.event === "stdout").flatMap((event) => [...bytesOf(event)]);
    assert.deepEqual(bytes, [97, 255, 98]);
    assert.deepEqual([events.at(-1).event, events.at(-2).result.status], ["done", "Success"]);
    for await (const event of faber.stream([{ command: "bash", args: ["-c", "echo on; sleep 60"] }])) {
      if (event.event === "stdout") break;
    }
    const signal = AbortSignal.timeout(200);
    await assert.rejects(faber.command("sleep", ["50"], {}, { signal }), { name: "TimeoutError" });
  },
  async blobs() {
    const bytes = new Uint8Array(256_000).map((_, at) => at % 256);
    const blob = await faber.putBlob(bytes);
    assert.equal(blob.size, 256_000);
    assert.deepEqual(new Uint8Array(await (await faber.getBlob(blob.blob)).arrayBuffer()), bytes);
    await faber.deleteBlob(blob.blob);
    await assert.rejects(faber.getBlob(blob.blob), (error) => error instanceof ApiError && error.status === 404);
  },
  async jobs() {
    const body = { tasks: [{ command: "echo", args: ["later"] }] };
    const { id } = await faber.submit(body, { idempotencyKey: "typescript-1" });
    assert.equal((await faber.submit(body, { idempotencyKey: "typescript-1" })).id, id);
    const job = await faber.wait(id);
    assert.deepEqual([job.state, job.response.results[0].stdout], ["done", "later\n"]);
    assert((await faber.jobs({ limit: 10 })).jobs.some((one) => one.id === id));
    await faber.cancel(id);
  },
  async sessions() {
    const session = await faber.session({ files: { "a/b.txt": "b" }, idle_timeout: "5m" });
    await session.write("c d.bin", new Uint8Array([0, 1]), "0600");
    const result = await session.command("bash", ["-c", "stat -c %a 'c d.bin'; cat a/b.txt; echo left > e"]);
    assert.equal(result.stdout, "600\nb");
    assert.equal(await (await session.read("e")).text(), "left\n");
    assert.deepEqual((await session.list()).map((entry) => entry.name), ["a", "c d.bin", "e"]);
    assert.deepEqual((await session.list("a")).map((entry) => entry.name), ["b.txt"]);
    await session.remove("e");
    for (const path of ["..", "../../sessions", "a/../../..", ".", "", "/a"]) {
      await assert.rejects(async () => session.remove(path), TypeError);
    }
    const names = [];
    for await (const event of session.stream([{ command: "echo" }])) names.push(event.event);
    assert.equal(names.at(-1), "done");
    const kept = await session.snapshot();
    assert((await faber.sessions()).some((one) => one.id === session.id));
    await session.end();
    await session.end();
    assert.equal((await session.info()).state, "ended");
    await assert.rejects(session.command("true"), (error) => error.status === 410 && /it was deleted/.test(error.details));
    const archives = [{ blob: kept.blob, format: kept.format }];
    assert.equal((await faber.command("cat", ["a/b.txt"], { archives })).stdout, "b");
  },
  async errors() {
    await assert.rejects(new Faber("http://127.0.0.1:9").health(), ConnectionFailed);
    await assert.rejects(faber.execute([]), { status: 400, error: "Validation error" });
  },
};
for (const [name, test] of Object.entries(tests)) {
  await test();
  console.log(name, "ok");
}
console.log("faber-client", Object.keys(tests).length);
