import { mkdir, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { findNatsServer } from "../../scripts/find-nats-server.mjs";
import { systemClock } from "../../shared/system.ts";
import { STREAMS, subjects, workConsumer } from "../../shared/wire/subjects.ts";
import { loadOrCreateNatsOperator } from "../access/nats-operator.ts";
import { connectNats, ensureStreams, ensureWorkConsumer } from "./jetstream.ts";
import { startNatsServer } from "./nats-server.ts";
import { adoptDefaultAccount } from "./nats-store-directory.ts";

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "insitu-adopt-"));
});
afterEach(() => rm(directory, { recursive: true, force: true }));

const quiet = { debug() {}, info() {}, warn() {} };

test("streams of a server without accounts go on in the account, with offers that are not acknowledged", async () => {
  const { path: binary } = await findNatsServer();
  const place = { binary, directory: join(directory, "nats"), host: "127.0.0.1", port: 0 };
  {
    const users = [{ user: "u", password: "p" }];
    await using server = await startNatsServer({ ...place, users, log: quiet, clock: systemClock });
    const connection = await connectNats({ servers: [server.url], user: "u", password: "p", name: "test" });
    const manager = await connection.jetstreamManager();
    await ensureStreams(manager, 1);
    await ensureWorkConsumer(manager, "site", workConsumer("site"));
    for (const text of ["held", "waits"]) await connection.jetstream().publish(subjects.work("site"), text);
    const consumer = await connection.jetstream().consumers.get(STREAMS.work, workConsumer("site"));
    expect((await consumer.next())?.string()).toBe("held");
    await connection.close();
  }
  const operator = await loadOrCreateNatsOperator(join(directory, "secrets"));
  const credentials = operator.controlPlaneUser();
  await using server = await startNatsServer({
    ...place,
    users: [],
    operator: { ...operator.config, streamsAccount: operator.controlPlane, credentials },
    log: quiet,
    clock: systemClock,
  });
  const connection = await connectNats({ servers: [server.url], credentials, name: "test" });
  const manager = await connection.jetstreamManager();
  const account = operator.accountOf("site");
  await ensureWorkConsumer(manager, "site", account);
  const consumer = await connection.jetstream().consumers.get(STREAMS.work, account);
  const taken = [await consumer.next(), await consumer.next()].map((message) => message?.string());
  expect(taken).toEqual(["held", "waits"]);
  const consumers = await manager.consumers.list(STREAMS.work).next();
  expect(consumers.map(({ name }) => name)).toEqual([account]);
  await connection.close();
});

test("streams of both are left alone, and a person is asked", async () => {
  for (const account of ["$G", "ACCOUNT"])
    await mkdir(join(directory, "jetstream", account, "streams", "RUNS"), { recursive: true });
  await expect(adoptDefaultAccount(directory, "ACCOUNT")).rejects.toMatchObject({ code: "conflict" });
  expect(await readdir(join(directory, "jetstream"))).toHaveLength(2);
});

test("a directory without streams is left as it is", async () => {
  await adoptDefaultAccount(directory, "ACCOUNT");
  await mkdir(join(directory, "jetstream", "$G"), { recursive: true });
  await writeFile(join(directory, "other"), "");
  await adoptDefaultAccount(directory, "ACCOUNT");
  expect(await readdir(join(directory, "jetstream"))).toEqual(["$G"]);
});
