/** A NATS of one's own with our accounts: what keeps agents apart on the embedded one does so here, and work is done. */
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type ConnectionOptions, connect, type NatsError } from "nats";
import { pino } from "pino";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadNatsOperator } from "../../control-plane/access/nats-operator.ts";
import { loadOrCreatePki } from "../../control-plane/access/pki.ts";
import { connectNats } from "../../control-plane/store/jetstream.ts";
import { settleReplicas } from "../../control-plane/store/stream-replicas.ts";
import { InsituError } from "../../shared/errors.ts";
import { systemClock } from "../../shared/system.ts";
import { type AttackGround, describeTrespasses, openAttackGround } from "../support/nats-attackers.ts";
import { joinRoute, type OwnNats, startOwnNats } from "../support/own-nats.ts";
import { Plant } from "../support/plant.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const LIMIT_MS = 90_000;
const POLL_MS = 100;
const SITE = { kind: "environment", name: "site", jurisdiction: "DE" };
const PIPELINE = {
  kind: "pipeline",
  name: "small",
  steps: [
    { id: "first", environment: "site", uses: "noop" },
    { id: "second", environment: "site", needs: ["first"], run: ["sh", "-c", "echo done"] },
  ],
};

describe.each([1, 3] as const)("a NATS of %i of one's own", (size) => {
  let nats: OwnNats;
  let ground: AttackGround;

  beforeAll(async () => {
    nats = await startOwnNats(size);
    const { servers, caPem, secrets } = nats;
    const operator = (await loadNatsOperator(secrets))!;
    const credentials = operator.controlPlaneUser();
    const connection = await connectNats({ servers, caPem, credentials, name: "test" });
    await settleReplicas({ connection, clock: systemClock, log: pino({ level: "silent" }) }, size);
    await connection.close();
    ground = await openAttackGround({ servers, caPem, accounts: operator, operator, replicas: size });
  }, LIMIT_MS);

  afterAll(async () => {
    await ground?.[Symbol.asyncDispose]();
    await nats?.[Symbol.asyncDispose]();
  });

  describeTrespasses(() => ground);

  test("a replica and an agent work over it, and the replica has nothing to warn of", {
    timeout: LIMIT_MS,
  }, async () => {
    await using plant = new Plant({
      dist: DIST,
      serverFlags: ["--secrets", nats.secrets, "--nats-url", nats.natsUrl, "--stream-replicas", String(size)],
      env: { INSITU_NATS_CA_FILE: nats.caFile },
    });
    await plant.startServer();
    await plant.apply(SITE, PIPELINE);
    await plant.startAgent("site", "a");
    const { events } = await plant.follow("small");
    expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
    expect(plant.logOf("server")).toContain("each environment has an account of its own on this NATS");
    expect(plant.logOf("server")).not.toContain("share one account");
  });

  test("a replica with the keys of another NATS is refused, and told what to do", {
    timeout: LIMIT_MS,
  }, async () => {
    await using other = await startOwnNats(1);
    await using plant = new Plant({
      dist: DIST,
      serverFlags: ["--secrets", other.secrets, "--nats-url", nats.natsUrl],
      env: { INSITU_NATS_CA_FILE: nats.caFile },
    });
    await expect(plant.startServer()).rejects.toThrow(/does not have the accounts of.*insitu nats init/);
  });

  test.runIf(size > 1)("nobody joins the cluster with a certificate of the authority of agents", async () => {
    const directory = join(nats.secrets, "nats-routes");
    const about = { clock: systemClock, trustDomain: "insitu.local" };
    const names = { dns: [], ips: ["127.0.0.1"] };
    const member = await (await loadOrCreatePki({ ...about, directory })).issuePeerCertificate(names);
    const stranger = await (
      await loadOrCreatePki({ ...about, directory: nats.secrets })
    ).issuePeerCertificate(names);
    expect(await joinRoute(nats, member)).toBe("INFO");
    expect(await joinRoute(nats, stranger)).toBe("refused");
    expect(await joinRoute(nats)).toBe("refused");
  });

  test("cuts an agent whose key is revoked, and lets it in at no node, also after a restart", {
    timeout: LIMIT_MS,
  }, async () => {
    const out = await ground.agent("home", "out");
    const away = nats.nodes.at(-1)!;
    // It is not told, and its directory says that the key is good.
    if (size > 1) await away.kill();
    await persistent(() => ground.identity.revoke(out.peer, []));
    await out.connection.closed();
    if (size === 1) await away.kill();
    await away.start();
    for (const server of nats.servers) await refusal({ ...out.options, servers: [server] });
  });
});

test("a server with a nats-server of its own moves to one, with its runs and its agents", {
  timeout: LIMIT_MS,
}, async () => {
  const directory = mkdtempSync(join(tmpdir(), "insitu-move-"));
  try {
    const secrets = join(directory, "secrets");
    const backup = join(directory, "backup.tar");
    const env = {
      INSITU_NATS_CA_FILE: join(secrets, "ca.crt.pem"),
      INSITU_BACKUP_PASSPHRASE: "a passphrase",
    };
    const insitu = (...args: string[]): string =>
      execFileSync(process.execPath, [join(DIST, "insitu.js"), ...args], {
        encoding: "utf8",
        stdio: ["ignore", "pipe", "pipe"],
        env: { ...process.env, ...env },
      });
    await using plant = new Plant({ dist: DIST, serverFlags: ["--secrets", secrets], env });
    await plant.startServer();
    await plant.apply(SITE, PIPELINE);
    await plant.startAgent("site", "a");
    const { id } = await plant.start("small");
    await plant.events(id, () => false);
    insitu(
      "backup",
      "create",
      "--data",
      join(plant.directory, "server"),
      "--secrets",
      secrets,
      "--out",
      backup,
    );
    const gone = once(plant.server!, "exit");
    plant.server!.kill("SIGTERM");
    await gone;

    await using nats = await startOwnNats(1, secrets);
    const there = ["--nats-url", nats.natsUrl, "--secrets", secrets];
    insitu("backup", "restore", backup, "--nothing-ran-since", ...there);
    const { gatewayPort } = plant;
    const moved = await plant.startReplica("moved", { gatewayPort }, there);
    plant.url = moved.url;
    plant.token = moved.token;
    expect((await plant.run(id)).status).toBe("succeeded");
    const { events } = await plant.follow("small");
    expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
    insitu("backup", "create", ...there, "--out", join(directory, "again.tar"));
    insitu("backup", "verify", join(directory, "again.tar"));
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});

/** While a cluster chooses leaders, writes fail; whoever revokes tries again. */
async function persistent(work: () => Promise<void>): Promise<void> {
  for (;;) {
    try {
      return await work();
    } catch (err) {
      if (!InsituError.from(err).retryable) throw err;
      await systemClock.sleep(POLL_MS);
    }
  }
}

/** Resolves when the server refuses these credentials; the test's time-out is the limit. */
async function refusal(options: ConnectionOptions): Promise<void> {
  for (;;) {
    try {
      const connection = await connect({ ...options });
      await connection.close();
    } catch (err) {
      if ((err as NatsError).code === "AUTHORIZATION_VIOLATION") return;
    }
    await systemClock.sleep(POLL_MS);
  }
}
