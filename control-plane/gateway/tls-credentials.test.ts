/** TLS of the gateway, as a real client of the library's server meets it. */
import { mkdtemp, rm } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Server } from "@grpc/grpc-js";
import { expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { loadOrCreatePki } from "../access/pki.ts";
import { gatewayCredentials } from "./tls-credentials.ts";

test("a connection that does not finish its handshake in time is cut, however it dribbles", async () => {
  const directory = await mkdtemp(join(tmpdir(), "insitu-tls-"));
  const pki = await loadOrCreatePki({ directory, trustDomain: "insitu.test", clock: systemClock });
  const pair = await pki.issueServerCertificate({ dns: [], ips: [] });
  const server = new Server();
  const { credentials } = gatewayCredentials(pki.caPem, pair, 300);
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync("127.0.0.1:0", credentials, (err, bound) => (err ? reject(err) : resolve(bound)));
  });
  const startedMs = systemClock.monotonicMs();
  const socket = connect({ host: "127.0.0.1", port });
  socket.on("error", () => undefined).resume();
  // A record of a handshake that is to be 512 bytes long, of which one comes now and then.
  socket.write(Buffer.from([22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]));
  const dribble = systemClock.every(20, () => void socket.write(Buffer.alloc(1)));
  await new Promise((resolve) => socket.once("close", resolve));
  dribble.cancel();
  expect(systemClock.monotonicMs() - startedMs).toBeGreaterThan(250);
  server.forceShutdown();
  await rm(directory, { recursive: true });
});
