/** `insitu nats rotate`: other signing keys for a NATS with our accounts, in three steps. On the host of a replica. */
import { InsituError } from "../../../shared/errors.ts";
import { BUCKETS } from "../../../shared/wire/subjects.ts";
import type { Rotated } from "../../access/nats-key-book.ts";
import { loadConfig, natsUrls, type ServerConfig } from "../../config.ts";
import type { Rotation, RotationStatus, RotationStep, RotationView } from "../../nats-setup/rotation.ts";
import type { RouteRotationView } from "../../nats-setup/route-rotation.ts";
import { EXIT } from "../exit-codes.ts";
import type { Invocation } from "../invocation.ts";

interface Options {
  what?: Rotated | "tls";
  activate?: true;
  retire?: true;
  force?: true;
  data?: string;
  secrets?: string;
  natsUrl?: string;
}

export async function rotate(invocation: Invocation, _args: string[], options: Options): Promise<number> {
  const { activate, retire, force, what } = options;
  const step = stepOf(options);
  if (what === undefined && (activate || retire))
    throw invalid("--activate and --retire need --what accounts, operator or tls");
  if (force && !retire && !(activate && what === "tls"))
    throw invalid("--force goes with --retire, and with --activate of tls");
  const config = loadConfig(flagsOf(options), invocation.world.env) as ServerConfig;
  const { secretsOf } = await import("../../store/nats-target.ts");
  const { rotate: make, rotationStatus, waitForReplicas } = await import("../../nats-setup/rotation.ts");
  const rotation: Rotation = {
    secrets: secretsOf(config),
    clock: invocation.clock,
    open: (operator) => open(invocation, config, operator),
  };
  if (what === "tls") {
    const { rotateRoutes } = await import("../../nats-setup/route-rotation.ts");
    const { clock, signal } = invocation;
    const about = { secrets: rotation.secrets, clock, signal };
    return await printRoutes(invocation, await rotateRoutes(about, { step, force: force === true }));
  }
  if (what !== undefined) {
    await make(rotation, { what, step, force: force === true });
    await waitForReplicas(rotation, invocation.signal);
  }
  return await print(invocation, await rotationStatus(rotation), config);
}

function stepOf({ activate, retire }: Options): RotationStep {
  if (activate && retire) throw invalid("--activate and --retire are two steps: one after the other");
  return activate ? "activate" : retire ? "retire" : "add";
}

function flagsOf({ data, secrets, natsUrl }: Options): string[] {
  const given = { "--data": data, "--secrets": secrets, "--nats-url": natsUrl };
  return Object.entries(given).flatMap(([flag, value]) => (value === undefined ? [] : [flag, value]));
}

async function open(
  { clock }: Invocation,
  config: ServerConfig,
  operator: Parameters<Rotation["open"]>[0],
): ReturnType<Rotation["open"]> {
  const { connectNats } = await import("../../store/jetstream.ts");
  const { openKv } = await import("../../store/kv.ts");
  const { askReplicas, askServers, countReplicas } = await import("../../store/nats-key-census.ts");
  const { runningTarget } = await import("../../store/nats-target.ts");
  const { NatsUsers } = await import("../../access/nats-users.ts");
  const serversExpected = config.natsUrl === undefined ? 1 : natsUrls(config.natsUrl).length;
  const target = { ...(await runningTarget(config)), name: "insitu-nats-rotate", reconnect: false };
  const connection = await connectNats({ ...target, credentials: operator.controlPlaneUser() });
  const credentials = operator.inspectorUser(Math.floor(clock.wallMs() / 1_000));
  const system = await connectNats({ ...target, credentials }).catch(async (err: unknown) => {
    await connection.close();
    throw err;
  });
  return {
    replicas: async () => {
      const [answers, connected] = await Promise.all([
        askReplicas(connection),
        countReplicas(system, operator.controlPlane),
      ]);
      return { answers, connected };
    },
    serversExpected,
    servers: () => askServers(system),
    users: async () => {
      const bucket = { clock, bucket: BUCKETS.natsUsers, schema: NatsUsers };
      const users = await openKv(connection, bucket);
      return (await users.list()).map(({ value }) => value);
    },
    async [Symbol.asyncDispose]() {
      await system.close();
      await connection.close();
    },
  };
}

async function print({ output }: Invocation, status: RotationStatus, config: ServerConfig): Promise<number> {
  const next = nextSteps(status, config);
  if (!output.people) {
    await output.data({ ...status, next });
    return EXIT.ok;
  }
  await output.table(status.rotations, [
    { title: "KEYS OF", value: ({ what }) => what },
    { title: "SIGNS", value: ({ signs }) => String(signs) },
    { title: "ACCEPTED", value: ({ keys }) => keys.join(", ") },
    { title: "STATE", value: ({ state }) => state },
  ]);
  for (const line of next) await output.note(line);
  return EXIT.ok;
}

async function printRoutes({ output }: Invocation, view: RouteRotationView): Promise<number> {
  const config = "insitu nats config, copy, and restart one nats-server after the other.";
  const { state } = view;
  const then = state === "added" ? "--activate" : "--retire";
  const next = [
    config,
    ...(state === "steady" ? [] : [`Then go on with: insitu nats rotate --what tls ${then}`]),
  ];
  if (!output.people) {
    await output.data({ ...view, next });
    return EXIT.ok;
  }
  const { authorities, signs } = view;
  await output.line(`routes: ${state}; certificates of ${signs}, trusted ${authorities.join(", ")}`);
  for (const line of next) await output.note(line);
  return EXIT.ok;
}

/** See docs/runbooks/nats-key-rotation.md. */
function nextSteps(status: RotationStatus, config: ServerConfig): string[] {
  const { replicas, behind, servers, holders, rotations } = status;
  const lines: string[] = [];
  if (replicas.current < replicas.connected || replicas.connected === 0)
    lines.push(
      `${replicas.current} of ${replicas.connected} replicas have these keys: give nats-operator.json to those with a directory of secrets of their own.`,
    );
  if (behind.length > 0)
    lines.push(
      config.natsUrl === undefined
        ? "The nats-server trusts another operator than these keys: restart the server."
        : `${behind.length} of ${servers} nats-servers (${behind.join(", ")}) trust another operator than these keys: insitu nats config, copy, and restart one after the other.`,
    );
  if (holders.length > 0)
    lines.push(`${holders.length} agents hold what a former key has signed; they renew within a day.`);
  return [...lines, ...rotations.flatMap(nextStep)];
}

function nextStep({ what, state }: RotationView): string[] {
  if (state === "added") return [`Then go on with: insitu nats rotate --what ${what} --activate`];
  if (state === "activated") return [`Then go on with: insitu nats rotate --what ${what} --retire`];
  return [];
}

function invalid(message: string): InsituError {
  return new InsituError("request.invalid", message);
}
