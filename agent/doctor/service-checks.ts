/** What answers at the end of the way: gRPC, with the time there and a word on our certificate; and NATS. */
import { join } from "node:path";
import { type Metadata, type ServiceError, status } from "@grpc/grpc-js";
import { connect, jwtAuthenticator, NatsError } from "nats";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import type { Identity } from "../enrolment/identity.ts";
import { addressOf, type HostAndPort, hostAndPort, natsAddress } from "../network/address.ts";
import type { Network } from "../network/network.ts";
import { openGateway } from "../uplink/gateway-client.ts";
import { Gateways } from "../uplink/gateways.ts";
import { loadAccess, loadOrMakeUserKey, type NatsAccess } from "../uplink/nats-access.ts";
import { teachNatsToDial } from "../uplink/nats-dial.ts";
import { endpointFor, type NatsWay } from "../uplink/nats-endpoints.ts";
import { NatsPassage, offersNats } from "../uplink/nats-passage.ts";
import { explainTls } from "../uplink/tls-trouble.ts";
import { softwareVersion } from "../uplink/version.ts";
import { endsOf, skip } from "./network-checks.ts";
import type { Finding } from "./report.ts";
import { type Ends, http2Request, natsRequest, onePortRequest, timeRequest } from "./requests.ts";

const ANSWER_WITHIN_MS = 10_000;
/** The time of an answer's head has no more than seconds. */
const SKEW_WARN_MS = 5_000;
/** Certificates are valid from a little before they are issued. */
const SKEW_FAIL_MS = 60_000;

export interface Answered {
  finding: Finding;
  clock: Finding;
  /** Why the control plane does not accept the agent's certificate. */
  refusal?: string;
}

interface Reply {
  err: ServiceError | null;
  /** Of the other side, when it said. */
  wallMs: number | undefined;
  askedMs: number;
  answeredMs: number;
}

/** @param identity undefined before enrolment: the gateway then asks for a certificate, which is an answer as well */
export async function checkGrpc(
  world: { network: Network; clock: Clock },
  ends: Ends,
  trust: { gateway: string; caPem: Buffer; identity?: Identity | undefined },
): Promise<Answered> {
  const reply = await ask(world, trust);
  const { err } = reply;
  const clock = clockFinding(reply, ends);
  const good = (seen: string): Finding => ({ check: "grpc", level: "ok", seen });
  if (err === null)
    return { clock, finding: good("the gateway answers, and accepts this agent's certificate") };
  if (err.code === status.UNIMPLEMENTED)
    return { clock, finding: good("the gateway answers; it is older than this agent, and says no more") };
  if (err.code === status.UNAUTHENTICATED || err.code === status.PERMISSION_DENIED) {
    if (trust.identity === undefined)
      return { clock, finding: good("the gateway answers, and waits for an enrolment") };
    return { clock, finding: good("the gateway answers"), refusal: err.details };
  }
  const said = world.network.troubleOf(hostAndPort(trust.gateway)) ?? explainTls(err.details, trust.gateway);
  const seen = `TLS completes and gRPC does not: ${said ?? err.details}`;
  return { clock, finding: { check: "grpc", level: "fail", seen, ask: http2Request(ends) } };
}

async function ask(
  { network, clock }: { network: Network; clock: Clock },
  { gateway, caPem, identity }: { gateway: string; caPem: Buffer; identity?: Identity | undefined },
): Promise<Reply> {
  const route = await network.route(hostAndPort(gateway));
  const client = openGateway(gateway, identity ?? { caPem }, {}, route);
  const askedMs = clock.wallMs();
  try {
    return await new Promise((resolve) => {
      const call = client.Check({ version: softwareVersion() }, (err, reply) => {
        timer.cancel();
        const told = Number(reply?.wallMs ?? 0);
        const wallMs = told > 0 ? told : dateOf(err?.metadata);
        resolve({ err, wallMs, askedMs, answeredMs: clock.wallMs() });
      });
      const timer = clock.after(ANSWER_WITHIN_MS, () => call.cancel());
    });
  } finally {
    client.close();
  }
}

/** HTTP's `date`, in whole seconds: taken for the middle of its second. */
function dateOf(metadata: Metadata | undefined): number | undefined {
  const parsed = Date.parse(String(metadata?.get("date")[0] ?? ""));
  return Number.isNaN(parsed) ? undefined : parsed + 500;
}

function clockFinding({ wallMs, askedMs, answeredMs }: Reply, ends: Ends): Finding {
  if (wallMs === undefined) return skip("clock", "the other side did not say its time");
  const skewMs = (askedMs + answeredMs) / 2 - wallMs;
  const size = Math.abs(skewMs);
  const side = skewMs > 0 ? "ahead of" : "behind";
  const seen =
    size <= 1_000
      ? "agrees with the control plane's"
      : `${(size / 1_000).toFixed(0)} s ${side} the control plane's`;
  if (size <= SKEW_WARN_MS) return { check: "clock", level: "ok", seen };
  const level = size > SKEW_FAIL_MS ? "fail" : "warn";
  return { check: "clock", level, seen: `${seen}: certificates depend on it`, ask: timeRequest(ends) };
}

/**
 * With what the last welcome said, as this agent; nothing is pulled.
 *
 * @param identity with which a gateway is asked for the way, where NATS is reached through one
 */
export async function checkNats(
  network: Network,
  stateDir: string,
  identity: Identity | undefined,
): Promise<Finding> {
  const access = loadAccess(join(stateDir, "nats.json"));
  if (access === undefined)
    return skip(
      "nats",
      "the control plane names its servers when the agent connects for the first time (port 4222 unless it says otherwise)",
    );
  if (access.throughGateway && identity === undefined)
    return skip(
      "nats",
      "it is reached through the gateway, with the certificate that the agent gets when it joins",
    );
  const passage = access.throughGateway ? passageOf(network, stateDir, identity!) : undefined;
  teachNatsToDial();
  const { seed } = loadOrMakeUserKey(join(stateDir, "nats-user.json"));
  const results = await Promise.all(
    access.servers.map((server) => tryServer({ network, passage }, access, server, seed)),
  );
  const failed = results.filter(({ level }) => level === "fail");
  const seen = results.map((result) => result.seen).join("; ");
  const [first] = failed;
  if (first === undefined)
    return { check: "nats", level: results.some(({ level }) => level === "warn") ? "warn" : "ok", seen };
  const level = failed.length === results.length ? "fail" : "warn";
  const ask = passage
    ? onePortRequest(await endsOf(hostAndPort(identity!.gateway), []))
    : natsRequest(await endsOf(natsAddress(first.server).address, []));
  return { check: "nats", level, seen, ask };
}

/** Before the control plane has named its NATS: whether the port that is reached takes that along. */
export async function checkOffer(
  network: Network,
  gateway: HostAndPort,
  caPem: Buffer,
): Promise<Finding | undefined> {
  if (!(await offersNats(network.way, gateway, caPem))) return undefined;
  const seen = `is reached through ${addressOf(gateway)} as well: no other port is needed`;
  return { check: "nats", level: "ok", seen };
}

function passageOf(network: Network, stateDir: string, identity: Identity): NatsPassage {
  const gateways = new Gateways(identity.gateway, join(stateDir, "gateways.json"));
  return new NatsPassage({
    way: network.way,
    random: () => 0, // one try needs no chance
    gateways: () => gateways.inOrder,
    identity: () => identity,
  });
}

async function tryServer(
  way: NatsWay,
  access: NatsAccess,
  server: string,
  seed: string,
): Promise<{ server: string; level: "ok" | "warn" | "fail"; seen: string }> {
  const { network, passage } = way;
  const by = passage ? " through the gateway" : "";
  try {
    const endpoint = await endpointFor(way, { servers: [server], caPem: access.caPem }, 0);
    const connection = await connect({
      ...endpoint,
      ...(access.userJwt === ""
        ? { user: access.user, pass: access.password }
        : { authenticator: jwtAuthenticator(access.userJwt, Buffer.from(seed)) }),
      inboxPrefix: access.inboxPrefix,
      reconnect: false,
      timeout: ANSWER_WITHIN_MS,
    });
    await connection.close();
    return { server, level: "ok", seen: `${server} lets this agent in${by}` };
  } catch (err) {
    if (err instanceof NatsError && /AUTH/.test(err.code))
      return {
        server,
        level: "warn",
        seen: `${server} answers${by}, and refuses the access that this agent had; it gets another when it connects`,
      };
    const said = passage ? passage.trouble : network.troubleOf(natsAddress(server).address);
    return { server, level: "fail", seen: `${server}: ${said ?? InsituError.from(err).message}` };
  }
}
