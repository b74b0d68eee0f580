import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { findNatsServer } from "../../scripts/find-nats-server.mjs";
import { freePorts, NatsProcess } from "../../test/support/nats-cluster.ts";
import { loadOrCreateNatsOperator, type NatsOperator } from "../access/nats-operator.ts";
import { checkAccounts } from "./nats-accounts-check.ts";

let directory: string;
let operator: NatsOperator;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "insitu-accounts-check-"));
  operator = await loadOrCreateNatsOperator(join(directory, "secrets"));
});

afterAll(() => rm(directory, { recursive: true, force: true }));

async function check(config: object): Promise<void> {
  const { path: binary } = await findNatsServer();
  const [port] = (await freePorts(1)) as [number];
  const configFile = join(directory, `${port}.conf`);
  await writeFile(configFile, JSON.stringify({ listen: `127.0.0.1:${port}`, ...config }));
  const server = new NatsProcess({ name: "n1", url: `nats://127.0.0.1:${port}`, binary, configFile });
  await server.start();
  try {
    await checkAccounts({ servers: [server.url], credentials: operator.controlPlaneUser() }, "/secrets");
  } finally {
    await server.kill();
  }
}

function operatorMode(of: NatsOperator): object {
  const { operatorJwt, systemAccount, preload } = of.config;
  return {
    operator: operatorJwt,
    system_account: systemAccount,
    resolver: "MEMORY",
    resolver_preload: preload,
  };
}

test("a NATS with our accounts is taken", async () => {
  await expect(check(operatorMode(operator))).resolves.toBeUndefined();
});

test.each([
  ["lets in everybody", async () => ({})],
  ["has users with passwords", async () => ({ authorization: { user: "a", password: "b" } })],
  [
    "has the accounts of others",
    async () => operatorMode(await loadOrCreateNatsOperator(join(directory, "others"))),
  ],
])("a NATS that %s is refused with what to do", async (_what, config) => {
  await expect(check(await config())).rejects.toMatchObject({
    code: "request.invalid",
    message: expect.stringMatching(
      /does not have the accounts of \/secrets\/nats-operator\.json.*insitu nats init --secrets \/secrets/,
    ),
  });
});

test("a NATS that does not run is another matter, and worth another try", async () => {
  const [port] = (await freePorts(1)) as [number];
  const target = { servers: [`nats://127.0.0.1:${port}`], credentials: operator.controlPlaneUser() };
  await expect(checkAccounts(target, "/secrets")).rejects.toMatchObject({
    code: "store.unavailable",
    retryable: true,
  });
});
