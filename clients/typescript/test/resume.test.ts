/** A daemon that dies: what was delivered is kept, what was not is asked for again, and a loop of crashes ends. */

import assert from "node:assert/strict";
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { Client, ConnectionLostError, CrashLoopError, DeadlineError, StartError } from "../src/index.js";
import type { ClientOptions, StartupEvent } from "../src/index.js";
import { check, collect, paths } from "./support/batches.js";
import { FakeServer, batchLines, helloThen, obedient } from "./support/fake-server.js";
import { FAKE_COMMAND, NO_DAEMON, leaveNothing, useFolder, useJournal } from "./support/scene.js";
import { isGone, sleep, until } from "./support/waiting.js";

const folder = useFolder();
const journal = useJournal(folder);
leaveNothing();

const options = { skip: NO_DAEMON };
const own = (more: ClientOptions = {}): Client => new Client({ command: FAKE_COMMAND, ...more });
const socket = (): string => join(folder(), "s");

test("a private daemon that dies is restarted, and nothing that was sent is asked for again", options, async () => {
  journal().faults({ die_at: [4, 1, 3] });
  const phases: StartupEvent["phase"][] = [];
  await using client = own({ onStartup: (event) => phases.push(event.phase) });
  check(await collect(client.describe(paths(40))), 40);
  assert.equal(journal().pids.length, 4);
  const sent = journal().entries("batch").flatMap((entry) => entry.frames);
  assert.deepEqual(sent.sort((a, b) => a - b), paths(40).map((_, at) => at));
  assert.deepEqual(phases, Array(4).fill(["finding", "starting", "ready"]).flat());
});

test("a shared daemon that dies is restarted", options, async () => {
  journal().faults({ die_at: [3] });
  await using client = own({ socket: socket() });
  check(await collect(client.describe(paths(40).values())), 40);
  await client.shutdown();
  assert.equal(journal().pids.length, 2);
});

test("a restart that fails is tried again", options, async () => {
  journal().faults({ die_at: [2], exit: 1, exit_at: [2] });
  await using client = own();
  check(await collect(client.describe(paths(40))), 40);
  assert.equal(journal().pids.length, 3);
});

test("five crashes in three minutes end it, with the last lines of the log", options, async () => {
  journal().faults({ die_at: [1, 1, 1, 1, 1, 1, 1] });
  await using client = own();
  const startedMs = performance.now();
  const error = await client.describeAll(paths(4)).catch((thrown: unknown) => thrown);
  assert.ok(error instanceof CrashLoopError, String(error));
  assert.match(error.message, /about to crash/);
  assert.equal(journal().pids.length, 5);
  assert.ok(performance.now() - startedMs < 15_000);
  await assert.rejects(client.ping(), CrashLoopError);
});

test("with resume off a loss is told at once", options, async () => {
  journal().faults({ die_at: [2] });
  await using client = own({ resume: false });
  const startedMs = performance.now();
  await assert.rejects(client.describeAll(paths(40)), (error: Error) => {
    assert.ok(error instanceof ConnectionLostError);
    assert.match(error.message, /was ended by SIGKILL.*\n.*last log lines[^]*about to crash/);
    return true;
  });
  assert.ok(performance.now() - startedMs < 2_000);
  assert.equal((await client.ping()).state, "ready");
});

test("a daemon that cannot start says why, or how it ended", options, async () => {
  journal().faults({ exit: 3, stderr: ["first line", "no such engine"] });
  await using ending = own();
  await assert.rejects(ending.ping(), { name: "StartError", code: "start_failed", message: /status 3[^]*no such engine/ });
  journal().faults({ fatal: { error: "no model of that name", code: "model_not_found" } });
  await using fatal = own();
  await assert.rejects(fatal.describeAll(paths(1)), { name: "StartError", code: "model_not_found", message: /no model of that name/ });
  journal().faults({ fatal_late: { error: "too late", code: "model_invalid" }, pause_s: 0.5 });
  await using late = own();
  await assert.rejects(late.describeAll(paths(1)), { name: "StartError", code: "model_invalid" });
  assert.equal(journal().pids.length, 3);
  await using none = new Client({ command: [join(folder(), "none")] });
  await assert.rejects(none.ping(), { name: "DaemonNotFoundError" });
  const script = join(folder(), "script");
  writeFileSync(script, "#!/no/such/interpreter\n", { mode: 0o755 });
  for (const shared of [{}, { socket: socket() }]) {
    await using unrunnable = new Client({ command: [script], ...shared });
    await assert.rejects(unrunnable.ping(), { name: "StartError", message: /Cannot run .*script: ENOENT/ });
  }
  await using chatter = new Client({ command: ["/bin/sh", "-c", 'echo nonsense >&3; sleep 60'] });
  await assert.rejects(chatter.ping(), { name: "StartError", message: /no daemon writes/ });
});

test("a start without progress ends at its deadline; progress restarts it", options, async () => {
  journal().faults({ mute: true });
  await using mute = own({ timeouts: { startMs: 700 } });
  await assert.rejects(mute.ping(), (error) => error instanceof DeadlineError && error.phase === "start");
  assert.ok(await isGone(journal().pids[0] ?? 0));
  journal().faults({ loading: 1.5 });
  await using slow = own({ timeouts: { startMs: 1_000 } });
  const events: StartupEvent[] = [];
  for await (const event of slow.start()) events.push(event);
  assert.equal(events.at(-1)?.phase, "ready");
  assert.ok(events.filter((event) => event.phase === "loading" && event.fraction === 0.5).length > 3);
});

test("close ends a private daemon that does not want to, and waits for none that is not bound", options, async () => {
  journal().faults({ loading: 60 });
  const client = own();
  const call = client.ping();
  call.catch(() => undefined);
  await until(() => journal().pids.length === 1);
  await sleep(100);
  const startedMs = performance.now();
  await client.close();
  await assert.rejects(call, { name: "ClosedError" });
  assert.ok(performance.now() - startedMs < 2_000);
  assert.ok(await isGone(journal().pids[0] ?? 0));
});

test("an attached daemon is somebody else's to restart: it is waited for", options, async () => {
  const image = paths(12);
  const half = helloThen(async (talk) => {
    const [first] = batchLines(await talk.expect("describe_images"));
    talk.line(first ?? {});
  });
  let server = await FakeServer.start(socket(), half);
  await using client = new Client({ socket: socket(), start: false, timeouts: { connectMs: 2_000 } });
  const batches = await collect(client.describe(image), ({ batch }) => {
    if (batch !== 1) return;
    void server[Symbol.asyncDispose]().then(() => sleep(200)).then(async () => (server = await FakeServer.start(socket(), obedient())));
  });
  check(batches, 12);
  await server[Symbol.asyncDispose]();
  await using gone = new Client({ socket: socket(), start: false, timeouts: { connectMs: 300 } });
  server = await FakeServer.start(socket(), half);
  const lost = collect(gone.describe(image), () => void server[Symbol.asyncDispose]());
  await assert.rejects(lost, { name: "ConnectionLostError", message: /did not come back/ });
});

test("a generation is asked once more only where nothing was heard of it", options, async () => {
  const usage = { promptTokens: 1, completionTokens: 2, tokensPerS: 1, timeToFirstTokenS: 1, peakMemoryBytes: 0 };
  const dies = helloThen(async (talk) => void (await talk.expect("generate")));
  const diesLate = helloThen(async (talk) => {
    const { id } = await talk.expect("generate");
    talk.line({ id, delta: "a" });
    await sleep(20);
  });
  const answers = helloThen(async (talk) => {
    const { id } = await talk.expect("generate");
    talk.line({ id, delta: "ab" });
    talk.line({ id, text: "ab", finishReason: "stop", usage, done: true });
    await talk.stall();
  });
  const attach = { socket: socket(), start: false };
  {
    await using _server = await FakeServer.start(socket(), dies, answers);
    await using client = new Client(attach);
    assert.equal(await client.generate("x").text(), "ab");
  }
  for (const dialogues of [[diesLate, answers], [dies, dies, answers]]) {
    await using _server = await FakeServer.start(socket(), ...dialogues);
    await using client = new Client(attach);
    await assert.rejects(client.generate("x").text(), ConnectionLostError);
  }
});

test("a call after `shutdown` is for the next daemon", options, async () => {
  await using client = own();
  await client.hello();
  await client.shutdown();
  assert.equal((await client.ping()).state, "ready");
  assert.equal(journal().pids.length, 2);
});

test("a shared daemon outlives its client, which never signals it", options, async () => {
  const first = own({ socket: socket() });
  await first.ping();
  await first.close();
  await using second = own({ socket: socket() });
  await second.ping();
  assert.equal(journal().pids.length, 1);
  assert.ok(!(await isGone(journal().pids[0] ?? 0)));
  assert.ok(existsSync(socket()));
  await second.shutdown();
});

test("a start that lost the election is an error of nobody", options, async () => {
  const clients = Array.from({ length: 3 }, () => own({ socket: socket() }));
  const results = await Promise.all(clients.map((client) => client.describeAll(paths(8))));
  assert.deepEqual(results.map((frames) => frames.length), [8, 8, 8]);
  await clients[0]?.shutdown();
  await Promise.all(clients.map((client) => client.close()));
});

test("StartError keeps the daemon's code", () => {
  assert.equal(new StartError("x").code, "start_failed");
  assert.equal(new StartError("x", "model_invalid").code, "model_invalid");
});
