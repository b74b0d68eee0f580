/** The disk of a real nats-server is filled and freed. It takes root to mount one. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { findNatsServer } from "../../scripts/find-nats-server.mjs";
import { systemClock } from "../../shared/system.ts";
import { canMount, Disk } from "../../test/support/disk.ts";
import { connectNats } from "./jetstream.ts";
import { NatsRoom } from "./nats-room.ts";
import { keepNatsServerRunning, startNatsServer } from "./nats-server.ts";
import { publish } from "./publish.ts";
import { WriteHealth } from "./write-health.ts";

const clock = systemClock;
const base = mkdtempSync(join(tmpdir(), "insitu-nats-room-"));
const mounts = canMount(join(base, "probe"));
afterAll(() => rmSync(base, { recursive: true, force: true }));

test.skipIf(!mounts)(
  "after its disk was full a nats-server goes on by itself, with all that it has acknowledged",
  { timeout: 120_000 },
  async () => {
    const directory = join(base, "nats");
    const disk = new Disk(directory, "128m");
    const said: string[] = [];
    const note = (_: object, text: string) => void said.push(text);
    const log = { debug() {}, info: note, warn: note, error: note };
    const { path: binary } = await findNatsServer();
    const user = { user: "test", password: "test" };
    const options = { binary, directory, host: "127.0.0.1", port: 0, users: [user], clock };
    const server = await startNatsServer({ ...options, log });
    const stop = new AbortController();
    const guarding = keepNatsServerRunning(server, { clock, log, signal: stop.signal });
    const room = new NatsRoom({ server, directory, clock, log });
    room.start();
    const connection = await connectNats({ servers: [server.url], ...user, name: "test" });
    // In a tenth of the time.
    const health = new WriteHealth({ clock: { monotonicMs: () => clock.monotonicMs() * 10 }, log }).watch(
      connection,
    );
    try {
      const { streams } = await connection.jetstreamManager();
      // Its limit is far above what is free when the server starts again.
      await streams.add({ name: "X", subjects: ["x"], max_bytes: 1024 ** 3 });
      const put = (messageId: string, patienceMs: number) =>
        publish(
          { connection, clock, patienceMs },
          { what: "message", stream: "X", subject: "x", payload: Buffer.alloc(9_000), messageId },
        );
      await put("before", 10_000);
      expect(room.hasRoom).toBe(true);
      disk.fill();
      await expect(put("meanwhile", 4_000)).rejects.toMatchObject({
        code: "store.unavailable",
        retryable: true,
      });
      expect(room.hasRoom).toBe(false);
      expect(health.failing()).toEqual(["X"]);
      const later = put("meanwhile", 80_000);
      disk.free();
      await later;
      await put("before", 10_000);
      expect((await streams.info("X")).state.messages).toBe(2);
      expect(room.hasRoom).toBe(true);
      expect(health.failing()).toEqual([]);
      expect(said).toContain("NATS stores again");
      expect(said).toContain("the disk of nats-server has room again; starting it again");
    } finally {
      await connection.close();
      await room.close();
      stop.abort();
      await guarding;
      await server.stop();
      disk.close();
    }
  },
);
